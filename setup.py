"""The one thing setup.cfg cannot say: a C extension that may fail to build. NumPy takes over then."""

from setuptools import Extension, setup

FLAGS = ["-O3", "-fno-math-errno", "-fno-trapping-math"]

setup(
    ext_modules=[
        Extension(
            "enclave._native",
            ["enclave/_native.c"],
            depends=[
                "enclave/_activation.h",
                "enclave/_avx512.h",
                "enclave/_check.h",
                "enclave/_check_exact.h",
                "enclave/_exact.h",
                "enclave/_gather.h",
                "enclave/_transpose.h",
            ],
            extra_compile_args=FLAGS,
            optional=True,
        ),
        Extension("accelerator._serve", ["accelerator/_serve.c"], extra_compile_args=FLAGS, optional=True),
    ]
)
