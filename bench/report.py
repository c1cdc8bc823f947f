"""The measurements as Markdown tables and as a plot."""

import io
import math
import tarfile

from bench.svg import Line, Panel, plot
from lab.host import REPO

COLOURS = {"nft": "#1f77b4", "legacy": "#d62728"}
PLACES = {"filter": "in the same table", "nat": "in another table"}


def exponent(small, large):
    """How the time grows from one size to another: 1 is linear. Each is (size, time)."""
    return math.log(large[1] / small[1]) / math.log(large[0] / small[0])


def table(heads, rows):
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in [heads, ["---"] * len(heads), *rows]]
    return "\n".join(lines) + "\n"


def _ms(value):
    return f"{value:.0f}" if value >= 10 else f"{value:.1f}"


def single(found):
    heads = [
        "backend",
        "stored file",
        "rules or chains",
        "listing",
        "bare programs",
        "plan",
        "beside the listing",
        "beside the bare programs",
    ]
    rows = [
        [row["backend"], row["kind"], f"{row['size']:,}"]
        + [_ms(row["ms"][name]) for name in ("listing", "bare", "plan")]
        + [f"**{row['ratio'][name]:.2f}**" for name in ("listing", "bare")]
        for row in found
    ]  # fmt: skip
    return table(heads, rows)


def single_growth(found):
    """From each size to the next."""
    rows = []
    for one, more in zip(found, found[1:]):
        if (one["backend"], one["kind"]) == (more["backend"], more["kind"]):
            pairs = [[(row["size"], row["ms"][name]) for row in (one, more)] for name in ("listing", "bare", "plan")]
            step = f"{one['size']:,} to {more['size']:,}"
            rows.append([one["backend"], one["kind"], step] + [f"{exponent(*pair):.2f}" for pair in pairs])
    return table(["backend", "stored file", "from, to", "listing", "bare programs", "plan"], rows)


def plans(found):
    heads = [
        "backend",
        "stored, each family",
        "missing",
        "foreign",
        "bare plan",
        "plan",
        "ratio",
        "own",
        "bare commit",
        "apply",
    ]
    heads += ["ratio", "beside no foreign"]
    alone = {(row["backend"], row["size"], row["missing"]): row["ms"]["plan"] for row in found if not row["foreign"]}
    rows = []
    for row in found:
        times, place = row["ms"], PLACES[row["table"]]
        beside = (
            times["plan"] / alone.get((row["backend"], row["size"], row["missing"]), math.nan) if row["foreign"] else 1
        )
        rows.append([
            row["backend"], f"{row['size']:,}", f"{row['missing']:,}",
            f"{row['foreign']:,} {place}" if row["foreign"] else "none",
            _ms(times["bare plan"]), _ms(times["plan"]), f"**{row['ratio']['plan']:.2f}**",
            _ms(row["own processor ms"]["plan"]),
            _ms(times["bare commit"]), _ms(times["apply"]), f"**{row['ratio']['apply']:.2f}**",
            f"{beside:.2f}",
        ])  # fmt: skip
    return table(heads, rows)


def growth(found):
    """The exponents from 1,000 to 10,000 stored rules, without foreign ones."""
    rows = []
    for backend in COLOURS:
        ends = [
            row
            for row in found
            if (row["backend"], row["foreign"], row["missing"]) == (backend, 0, 3) and row["size"] >= 1000
        ]
        if len(ends) == 2:
            pairs = [[(row["size"], row["ms"][name]) for row in ends] for name in ("bare plan", "plan", "apply")]
            pairs.append([(row["size"], row["own processor ms"]["plan"]) for row in ends])
            rows.append([backend] + [f"{exponent(*pair):.2f}" for pair in pairs])
    return table(["backend", "bare plan", "plan", "apply", "the plan's own processor time"], rows)


def planner(found):
    sizes = sorted({size for times in found.values() for size in times}, key=int)
    rows = [[name] + [_ms(times[size]) if size in times else "" for size in sizes] for name, times in found.items()]
    return table(["milliseconds, rules"] + [f"{int(size):,}" for size in sizes], rows)


def memory(found):
    rows = [
        [
            row["backend"],
            f"{row['size']:,}",
            row["memory MB"]["before"],
            row["memory MB"]["plan"],
            row["memory MB"]["programs"],
        ]
        for row in found
    ]
    return table(
        ["backend", "stored, each family", "Salt before", "after the plan", "the largest program, or Salt before"], rows
    )


def programs(found):
    parts = []
    for row in found:
        for function in ("plan", "apply"):
            parts.append(f"{row['backend']}, `{function}`: {len(row[function])} programs")
            parts += [f"- `{command}`" for command in row[function]]
            parts.append("")
    return "\n".join(parts)


def fleet(found):
    rows = []
    for case in ("in sync", "a rule missing"):
        for target, name in (("all", f"{found['minions']} minions"), ("one", "one minion")):
            times = found[case][target]["ms"]
            share = found["minions"] if target == "all" else 1
            extra = (times["iptlive"] - times["empty state"]) / share
            cells = [_ms(times[job]) for job in ("test.ping", "empty state", "iptlive")]
            rows.append([f"{name}, {case}", *cells, _ms(extra)])
    sizes = [[f"{int(edits):,}"] + list(weights.values()) for edits, weights in found["return bytes"].items()]
    heads = ["milliseconds", "test.ping", "empty state", "iptlive test=True", "more than the empty state, per minion"]
    return table(heads, rows) + "\n" + table(["edits", "bytes: test.ping", "empty state", "iptlive test=True"], sizes)


def picture(found):
    """Plan and bare tools by the number of stored rules, and by the number of foreign ones."""
    stored, foreign = [], []
    for backend, colour in COLOURS.items():
        rows = [row for row in found if row["backend"] == backend and row["missing"] == 3]
        for job, dashed in (("plan", False), ("bare plan", True)):
            points = [(row["size"], row["ms"][job]) for row in rows if not row["foreign"]]
            stored.append(Line(f"{job}, {backend}", points, colour, dashed))
            size = min((row["size"] for row in rows), default=0)
            beside = [
                (row["foreign"], row["ms"][job]) for row in rows if row["size"] == size and row["table"] == "filter"
            ]
            foreign.append(Line(f"{job}, {backend}", sorted(beside), colour, dashed))
    return plot([
        Panel("Both families, by stored rules", "stored rules in each family", "ms", stored),
        Panel("20 stored rules, foreign ones in the same table", "foreign rules", "ms", foreign),
    ])  # fmt: skip


def loading(found):
    """What our modules add: the first use of a function of theirs beside the first uses of Salt's own."""
    names = list(found[0]["loading ms"])
    rows = []
    for what, key in (("right after a sync", "loading at first ms"), ("from then on", "loading ms")):
        rows.append([what] + [min(row[key][name] for row in found) for name in names])
    return table(["milliseconds, first use in a job of"] + [f"`{name}`" for name in names], rows) + shipped()


def shipped():
    """What salt-ssh ships of ours: the modules of each kind, packed."""
    rows = []
    for kind in ("modules", "states", "output"):
        files = sorted((REPO / f"_{kind}").glob("*iptlive*.py"))
        if files:
            packed = io.BytesIO()
            with tarfile.open(fileobj=packed, mode="w:gz") as archive:
                for path in files:
                    archive.add(str(path), path.name)
            size = sum(path.stat().st_size for path in files)
            rows.append([kind, len(files), f"{size:,}", f"{len(packed.getvalue()):,}"])
    return "\n" + table(["kind", "files", "bytes", "packed"], rows)
