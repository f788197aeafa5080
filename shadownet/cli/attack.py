"""The verbs attack and check."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shadownet.cli.output import as_json, table
from shadownet.progress import working
from shadownet.wire.errors import InputError

if TYPE_CHECKING:
    from shadownet.attacks import bench, live, meter, registry


def attack(args: argparse.Namespace) -> None:
    _needs_scipy()
    if Path(args.bundle).is_file():
        _meter(args)
        return
    from shadownet.attacks import bench, live, registry

    chosen = registry.select(args.attacks)
    if (args.data or args.output or args.malicious) and not (args.model and args.data):
        raise InputError("attacks that take part are scored against the truth: they need --model and --data")
    view = bench.open_view(args.bundle, args.base, args.transcript, args.other)
    truth = bench.open_truth(args.bundle, args.model, args.key) if args.model else None
    data = bench.read_data(args.data) if args.data else None
    stage = live.Stage(
        view, args.bundle, args.model or "", truth or (), args.key, None if data is None else data.queries, args.base,
        args.runs, args.malicious,
    )  # fmt: skip
    if args.attacks:
        _lacking(chosen, stage)
    outcomes = bench.weigh(view, truth, chosen) + (live.weigh(stage, chosen) if truth else [])
    theft = None
    if data is not None and registry.ATTACKS[registry.STEAL] in chosen:
        with working("stealing the whole model"):
            theft = bench.theft(stage.varied, args.model, data, args.queries, args.base)
        if args.output:
            _write(Path(args.output), theft.model)
    total = sum(layer.filters for layer in view.layers)
    if args.json:
        lost = bench.lost(outcomes, total) if truth else None
        as_json({
            "bundle": args.bundle, "scheme": view.scheme, "layers": len(view.layers), "filters": total, "lost": lost,
            "attacks": [o.to_json() for o in outcomes], "stolen": theft.to_json() if theft else None,
        })  # fmt: skip
        return
    print(_verdict(args.bundle, view.scheme, outcomes, total, truth is not None))
    _outcomes([o for o in outcomes if registry.ATTACKS[o.attack].on_weights])
    _taking_part([o for o in outcomes if not registry.ATTACKS[o.attack].on_weights])
    if truth:
        _layers(bench.by_layer(outcomes))
    if theft:
        _theft(theft, args.output)


FLAGS = {
    "a public model": "--base", "transcripts": "--data", "chosen inputs": "--data", "labels": "--data",
    "a malicious accelerator": "--malicious", "two bundles": "--other",
}  # fmt: skip


def _lacking(chosen: list[registry.Attack], stage: live.Stage) -> None:
    """Raise ``InputError`` where an attack that was asked for by name lacks what it needs."""
    for attack in chosen:
        missing = stage.missing(attack)
        if missing:
            flags = " and ".join(dict.fromkeys(FLAGS[need] for need in missing))
            raise InputError(f"{attack.name} needs {' and '.join(missing)}", f"give it {flags}")


def check(args: argparse.Namespace) -> int:
    _needs_scipy()
    from shadownet.attacks.gates import judge, read_gates

    gates = read_gates(args.gates)
    results = judge(gates, args.bundle, args.model, args.key)
    failed = [r for r in results if not r.passed]
    if args.json:
        as_json({"bundle": args.bundle, "passed": not failed, "gates": [r.to_json() for r in results]})
        return int(bool(failed))
    print(f"{args.bundle}: " + (f"{len(failed)} of {len(results)} gates FAILED" if failed else "all gates passed"))
    rows = [
        ["pass" if r.passed else "FAIL", r.gate, f"{r.found:.3f}", f"{r.limit:.3f}", r.where]
        for r in sorted(results, key=lambda r: r.passed)
    ]
    table(["", "gate", "found", "limit", "by"], rows)
    return int(bool(failed))


def _needs_scipy() -> None:
    try:
        import scipy  # noqa: F401
    except ModuleNotFoundError:
        raise InputError("attacks need SciPy", "pip install scipy joblib") from None


def _write(path: Path, content: bytes) -> None:
    try:
        path.write_bytes(content)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from None


def percent(share: float | None) -> str:
    return "" if share is None else f"{share:.1%}" if 0.001 <= share <= 0.999 or share in (0.0, 1.0) else f"{share:.2%}"


def size(error: float | None) -> str:
    return "" if error is None else f"{error:.1e}" if error > 1e-12 else "0"


def _verdict(bundle: str, scheme: str, outcomes: list[bench.Outcome], total: int, scored: bool) -> str:
    from shadownet.attacks import bench

    if not scored:
        applied = ", ".join(o.attack for o in outcomes) or "none"
        return f"{bundle} ({scheme}): attacks that apply: {applied}. How much they got needs --model, the original."
    lost = bench.lost(outcomes, total)
    used = ", ".join(sorted({attack for attack, _ in bench.by_layer(outcomes)}))
    word = "BROKEN" if lost > 0.5 else "leaks" if lost > 0.01 else "holds against these attacks"
    share = f"{percent(lost)} of {total} outsourced filters recovered within 5 %"
    return f"{bundle} ({scheme}): {word}. {share} ({used or 'no attack'})."


def _outcomes(outcomes: list[bench.Outcome]) -> None:
    rows = [
        [
            o.attack, o.needs, str(o.layers), percent(o.recovered),
            "" if o.worst is None else f"{percent(o.worst)} {o.worst_layer}",
            size(o.error), percent(o.pairs), percent(o.null), percent(o.base),
            f"{o.seconds:.1f}",
        ]
        for o in outcomes
    ]  # fmt: skip
    columns = [
        "attack",
        "needs",
        "layers",
        "recovered",
        "worst layer",
        "median error",
        "pairs",
        "random",
        "public model",
    ]
    table([*columns, "s"], rows)


def _taking_part(outcomes: list[bench.Outcome]) -> None:
    """Attacks on a bundle at work, and what each found in which layer."""
    if not outcomes:
        return
    rows = [
        [
            o.attack, o.needs, o.measure, percent(o.recovered), f"{percent(o.worst)} {o.worst_layer}", percent(o.null),
            percent(o.base), str(o.queries), f"{o.seconds:.1f}",
        ]
        for o in outcomes
    ]  # fmt: skip
    columns = ["attack", "needs", "share of", "got", "worst layer", "random", "public model", "runs", "s"]
    table(columns, rows, "attacks that take part")
    notes = [[o.attack, name, note] for o in outcomes for name, note in o.forms.items() if note]
    table(["attack", "layer", "note"], notes)


def _layers(layers: list[tuple[str, Any]]) -> None:
    rows = [
        [s.layer, str(s.filters), str(s.depth), attack, percent(s.rows.recovered), size(s.rows.error),
         percent(s.rows.aligned), percent(s.null.recovered)]
        for attack, s in layers
    ]  # fmt: skip
    columns = ["layer", "filters", "d", "best attack", "recovered", "median error", "direction", "random"]
    table(columns, rows, "each layer under the attack that got most of it")


def _theft(theft: bench.Theft, output: str | None) -> None:
    rows = []
    names = ("stolen", "black_box", "white_box", "null", "base")
    what = ("stolen model", "same labels, no leak", "the victim", "random weights", "public model alone")
    for name, text in zip(names, what, strict=True):
        q = getattr(theft, name)
        if q is not None:
            rows.append([text, *(percent(c) for c in q.to_json().values())])
    n = theft.normalised
    rows.append(["stolen, normalised", *(f"{n[k]:.2f}" if k in n else "" for k in theft.stolen.to_json())])
    columns = [
        "model", "accuracy", "fidelity", "FGSM carries", "PGD carries", "members AUC", "members TPR at 1 % FPR",
        "members AUC by gradient",
    ]  # fmt: skip
    table(columns, rows, f"the whole model, {theft.queries} labelled queries, fitted to them: {theft.fitted}")
    if output:
        print(f"wrote the stolen model to {output}")


def _meter(args: argparse.Namespace) -> None:
    """The argument is a model: predict what each scheme would leave to take."""
    from shadownet.attacks import meter, registry

    names = args.schemes.split(",") if args.schemes else None
    readings = meter.read(args.bundle, args.base, names, registry.select(args.attacks))
    if not readings:
        raise InputError("there is no scheme left to try", "--schemes names some")
    if args.json:
        as_json({"model": args.bundle, "predicted": [r.to_json() for r in readings]})
        return
    known = "with this public model" if args.base else "with no public model"
    worst = max(readings, key=lambda r: r.lost)
    print(f"{args.bundle}: predicted, {known}: between {percent(min(r.lost for r in readings))} and "
          f"{percent(worst.lost)} of the filters that go out would be recovered ({worst.scheme}).")  # fmt: skip
    _readings(readings)


def _readings(readings: list[meter.Reading]) -> None:
    names = sorted({score.layer for r in readings for _, score in r.layers})
    found = [{score.layer: f"{percent(score.rows.recovered)} {attack}" for attack, score in r.layers} for r in readings]
    rows = [[name, *(cells.get(name, "nothing") for cells in found)] for name in names]
    rows.append(["of all that goes out", *(percent(r.lost) for r in readings)])
    table(["layer", *(r.scheme for r in readings)], rows, "predicted share of filters recovered, and by which attack")
