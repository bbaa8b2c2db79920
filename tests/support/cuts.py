"""Cut a validation split off rows with a column `label`, as a kind with one label a row does."""

from rankfold.tasks.data.splits import hold_out, value_strata


def cut(table, group=None, keys=None):
    return hold_out(table, value_strata(table.rows, "label"), group, keys)
