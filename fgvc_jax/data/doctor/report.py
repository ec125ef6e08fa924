"""The findings as text."""

from fgvc_jax.data.doctor.findings import Finding, Findings


def report(findings: Findings) -> list[str]:
    """One string a line: what stops training first, the verdict last."""
    splits = list(next(iter(findings.counts.values())))
    totals = {s: sum(by_split[s] for by_split in findings.counts.values()) for s in splits}
    listed = ", ".join(f"{n:,} {split}" for split, n in totals.items())
    result = [f"{findings.title()}: {len(findings.counts)} classes, {listed} images"]
    for finding in findings.items:
        result += describe(finding, most=0 if finding.severity == "note" else 5)
    return [*result, *(_line("training", line) for line in findings.training), verdict(findings)]


def describe(finding: Finding, most: int = 5) -> list[str]:
    """The finding, its first few files, the advice."""
    return [
        _line(finding.severity, finding.text),
        *(f"{'':<13}{case}" for case in finding.cases[:most]),
        *(
            [f"{'':<13}and {len(finding.cases) - most:,} more"]
            if 0 < most < len(finding.cases)
            else []
        ),
        *([f"{'':<11}-> {finding.advice}"] if finding.advice else []),
    ]


def verdict(findings: Findings) -> str:
    errors, warnings = (len(findings.of(severity)) for severity in ("error", "warning"))
    if errors:
        return f"Training stops: {errors} kind{'s' if errors > 1 else ''} of error."
    if warnings:
        return f"Ready for training; {warnings} warning{'s' if warnings > 1 else ''} to look at."
    return "Ready for training."


def _line(heading: str, text: str) -> str:
    return f"{heading:<9}  {text}"
