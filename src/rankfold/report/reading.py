"""What a reader has to know to read the numbers: at the end of the page and of the Markdown."""

from rankfold.bench.statistics.doubt import RESAMPLES
from rankfold.bench.statistics.stats import LEVEL

READING_TITLE = "How to read this"

READING = (
    "A value is the mean over the seeds. Its interval says where the mean could be with other examples "
    f"({LEVEL:.0%}; Wilson's interval for the accuracy of one seed, otherwise a bootstrap with {RESAMPLES:,} "
    "resamples), and with other seeds where there are at least two (Student's t: with two or three seeds it "
    "is wide, because two or three numbers say little of how far a fourth may lie).",
    "A difference is paired: both methods on the same examples with the same seeds. It can be clear while "
    "the intervals of the two values overlap.",
    "“Better” and “worse” hold for all comparisons of a table together (Holm's correction); the interval "
    "beside them is that of one comparison alone, so it can be clear of zero where the verdict is “not "
    "separated”. That means that this much data cannot tell the two apart; it does not mean that they are "
    "equal.",
    "Trainable numbers are those of the adapter; a task head beside it is the same for every method and "
    "counted apart. The size on disk is that of the weights file, task head included.",
)
