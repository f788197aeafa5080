"""Networks to try the project on: a zoo of published architectures and small trained networks of our own.

    python -m models -h          write one network of the zoo as .tflite
    python -m models.digits -h   train the digit networks again

Nothing here is installed with the wheel, and importing the package does not import TensorFlow: only the
builders do (extra `zoo`), on the CPU alone so that files do not depend on the machine's accelerators.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
