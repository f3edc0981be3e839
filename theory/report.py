"""What theory_checks.py reports: rows of verdicts, the table, theory.json and the figures."""

import json
import math
import os
import platform
import textwrap
from dataclasses import asdict, dataclass
from pathlib import Path

import matplotlib
import torch
from matplotlib.figure import Figure

from theory.dec_mdps import exact
from utils.errors import InputError
from utils.files import atomic, current_commit

matplotlib.rcParams["pdf.fonttype"] = 42  # text stays text
ROUNDING = 1e-11  # relative: what separates a broken bound from float64 noise
CONDITION, FAILS, MEASURED = "holds with a condition", "fails", "measured"  # verdicts besides "holds"


@dataclass
class Row:
    """One line of the table."""

    statement: str
    tried: int
    worst_slack: float
    tightness_median: float | None  # None: measured, nothing to be tight to
    tightness_max: float | None
    verdict: str
    expected: str
    note: str = ""
    claim: str = ""


def check(statement, pairs, expected="holds", note=""):
    """A row from (value, bound) pairs of tensors: does value <= bound, up to rounding, everywhere? `expected` is
    "holds", "holds with a condition" (which the statement names), "fails" (which needs a single break) or "measured"
    (no verdict). A break that is not expected is described in the note."""
    value, bound = (torch.cat([exact(pair[j]).expand(pair[0].shape).flatten() for pair in pairs]) for j in (0, 1))
    slack = bound - value
    broken = ~(slack >= -ROUNDING * (1 + bound.abs()))
    ratio = (value / bound)[bound > ROUNDING]
    ratio = ratio if len(ratio) else exact([0.0])
    verdict = FAILS if broken.any() else "holds" if expected == FAILS else expected
    if not slack.isfinite().all():
        verdict = "not a number"  # never expected
    elif expected == MEASURED:
        verdict = expected
    elif verdict == FAILS and expected != FAILS:
        worst = int(slack.nan_to_num(nan=-math.inf).argmin())
        note = f"value {float(value[worst]):.6g} > bound {float(bound[worst]):.6g} (try {worst}). {note}"
    tightness = (None, None) if expected == MEASURED else (float(ratio.median()), float(ratio.max()))
    return Row(statement, len(value), float(slack.min()), *tightness, verdict, expected, note)


def listed(values, style):
    """Numbers as text, separated by commas, each in the given format."""
    return ", ".join(format(value, style) for value in values)


def table(rows) -> str:
    """The terminal's table: a line per row, and below it the counterexamples and conditions, by number."""
    lines = ["    claim         verdict                  tried  worst slack  tightness: median, max   statement"]
    for number, r in enumerate(rows, 1):
        verdict = r.verdict + ("" if r.verdict == r.expected else " (!)")
        tightness = " " * 21
        if r.tightness_max is not None:
            tightness = f"{r.tightness_median:10.3g} {r.tightness_max:10.4g}"
        lines.append(
            f"{number:>3} {r.claim:13} {verdict:23} {r.tried:6} {r.worst_slack:12.3g}  {tightness}   {r.statement}"
        )
    notes = [textwrap.fill(f"{n}. {r.note}", 120, subsequent_indent="   ") for n, r in enumerate(rows, 1) if r.note]
    return "\n".join([*lines, "", *notes])


def save(folder: Path, args: dict, rows, data: dict) -> None:
    """Write theory.json, and each figure whose numbers are there as PNG and PDF; every file appears when complete."""
    report = dict(args=args, commit=current_commit(), torch=torch.__version__, machine=platform.machine())
    report |= dict(rows=[asdict(row) for row in rows], data=data)
    for name, (file, draw) in FIGURES.items():
        if name in data:
            figure = Figure(layout="constrained")
            draw(figure, data[name])
            for suffix in ("png", "pdf"):
                with atomic(folder / f"{file}.{suffix}") as partial:
                    when = {"CreationDate": None} if suffix == "pdf" else None  # the same bytes every time
                    figure.savefig(partial, dpi=110, metadata=when)
    with atomic(folder / "theory.json") as partial:
        partial.write_text(json.dumps(report, indent=1) + "\n")


def check_folder(folder: Path) -> None:
    """Raise InputError now where `save` could not write later."""
    try:
        there = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
        reason = "" if there.is_dir() and os.access(there, os.W_OK) else f"{there} is not a writable folder"
        folder.exists()  # raises for impossible names
    except OSError as error:
        reason = error.strerror
    if reason:
        raise InputError(f"cannot write to {folder}: {reason}")


def draw_subsets(figure, data) -> None:
    """The headline: what replacing |S| agents does to occupancies (at most linear) and to densities (exponential)."""
    names = dict(
        W1="exact W1 of state occupancies",
        coupling="its bound by coupling",
        linear="Lemma 1's linear bound",
        ratio="largest density ratio",
        chi2="1 + chi-squared",
        support=f"1 / chance to lie in the support of {data['samples']:,} samples",
    )
    figure.set_size_inches(8, 5)
    ax = figure.subplots()
    for name, label in names.items():
        low, mean, high = zip(*data["curves"][name], strict=True)
        sizes = range(len(mean))
        style = "-" if name in ("W1", "coupling", "linear") else "--"
        ax.plot(sizes, [v or math.nan for v in mean], style, marker="o", ms=3, label=label)
        ax.fill_between(sizes, [v or math.nan for v in low], [v or math.nan for v in high], alpha=0.15)
    ax.axhline(1, color="black", lw=0.6, ls=":")
    ax.set(yscale="log", xlabel=f"|S|, agents replaced (of {data['agents']})", xticks=range(data["agents"] + 1))
    ax.set_title("Replacing agents: at most linear in occupancies, exponential in densities")
    ax.legend(fontsize=8)


def draw_bounds(figure, data) -> None:
    """Theorems 1 and 3 in the sharp case: worst error, printed bound, and the largest possible error."""
    figure.set_size_inches(10, 3.8)
    for ax, panel in zip(figure.subplots(1, len(data)), data, strict=True):
        for name, values in panel["curves"].items():
            ax.plot(panel["x"], values, "--" if "bound" in name else "-", marker="o", ms=3, label=name)
        if panel["scale"] == "log":
            ax.axhline(panel["largest"], color="black", lw=0.8, ls=":", label="largest error of a Qhat within 1/(1-g)")
        ax.set(title=panel["title"], xlabel=panel["xlabel"], xscale=panel["scale"], yscale=panel["scale"])
        ax.legend(fontsize=7)


def draw_coverage(figure, data) -> None:
    """`coverage`: by k, the share of queries that the dataset lacks, and the error of a fitted Q there."""
    figure.set_size_inches(10, 3.8)
    left, right = figure.subplots(1, 2)
    for name, values in data.items():
        style = dict(ls="--" if "modes" in name else "-", marker="o", ms=3, label=name)
        left.plot(range(len(values["missing"])), values["missing"], **style)
        right.plot(range(1, len(values["error"]) + 1), values["error"], **style)
    left.set(title="share of queries (s', a'^(k)) not in the data", xlabel="k")
    right.set(title="mean error of the fitted Q at its queries", xlabel="k")
    left.legend(fontsize=7)


def draw_tradeoff(figure, data) -> None:
    """`tradeoff`: values of teams learnt offline by four backups, against the behaviour's correlation, by dataset size;
    0 is the value of independent behaviour, 1 that of the best joint policy."""
    figure.set_size_inches(13, 2.4 * len(data["panels"]))
    axes = figure.subplots(len(data["panels"]), len(data["samples"]), sharex=True, sharey="row", squeeze=False)
    for row, (title, methods) in zip(axes, data["panels"].items(), strict=True):
        for column, (ax, samples) in enumerate(zip(row, data["samples"], strict=True)):
            for name, by_samples in methods.items():
                mean, half = zip(*by_samples[column], strict=True)
                ax.errorbar(data["dials"], mean, half, label=name, capsize=2, lw=1)
            ax.set_title(f"{title}; {samples:,} transitions", fontsize=9)
        row[0].set_ylabel("value")
    for ax in axes[-1]:
        ax.set_xlabel("dial of the behaviour (0 independent, 1 coordinated)")
    axes[0, 0].legend(fontsize=8)


FIGURES = {  # by claim: the file's name, and what draws its data
    "lemma1": ("linear_or_exponential", draw_subsets),
    "theorem3": ("bounds", draw_bounds),
    "coverage": ("coverage", draw_coverage),
    "tradeoff": ("tradeoff", draw_tradeoff),
}
