"""A study's report in Weights & Biases: its tables, its figures, and what it found."""

import wandb

from unimem.results.render.blocks import Picture, Table
from unimem.results.report import Report
from unimem.runs.wandb_run import Connection, WandbRun


def publish(report: Report, connection: Connection) -> str | None:
    """Log the report to a run of its own in the study's group, whose name is the study's.

    A later report goes on in the same run. Whatever goes wrong there is a warning. Returns the
    command that sends it later, if there is something left to send.
    """
    study = report.study
    config = {"study": study.name, "command": study.command, "cells": len(study.cells)}
    run = WandbRun(
        connection,
        report.folder,
        group=study.name,
        job_type="report",
        name=study.name,
        config=config,
    )
    tables = [report.verdict_table(), *report.tables]
    run.attempt(lambda own: own.log({f"tables/{t.name}": as_wandb(t) for t in tables}))
    run.attempt(lambda own: own.log(dict(map(_image, report.pictures))))
    return run.finish(report.headline())


def as_wandb(table: Table) -> wandb.Table:
    """Return a table of W&B: intervals are columns of their own, and numbers are numbers."""
    columns = table.columns()
    made = wandb.Table(columns=list(columns), allow_mixed_types=True)
    for row in zip(*columns.values(), strict=True):
        made.add_data(*row)
    return made


def _image(picture: Picture) -> tuple[str, wandb.Image]:
    image = wandb.Image(str(picture.path), caption=picture.caption)
    return f"figures/{picture.path.stem}", image
