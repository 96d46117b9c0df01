"""Key frames in training prompts (`prompt.key_frames`), as in Open-o3-Video (arXiv 2510.20579) and the code of VISD.

Both put the annotated frames among those that the student sees while it trains, and none where it is evaluated. This is the
one way in which evidence reaches a student's prompt: as times at `Media.also`, on training samples only, by choice. Here
the frames are the video's own, shown nearest to the annotated times; the published code takes pictures kept beside it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from visd.config import ConfigError
from visd.types import Sample

EVERY = "all"
"""Instead of names of families."""


@dataclass(frozen=True)
class KeyFrames:
    """What became of the training samples."""

    samples: int  # of the run
    shown: int  # samples that show key frames
    frames: int  # times added to them
    without: int  # samples of the chosen families whose evidence has no key frame
    ambiguous: (
        int  # samples of the chosen families without exactly one video, so that nothing says whose times they are
    )

    @property
    def told(self) -> str:
        """The line at the start of a run."""
        return (
            f"prompt.key_frames: THE STUDENT SEES WHERE THE EVIDENCE IS: {self.frames} key frames stand in the prompts of "
            f"{self.shown} of {self.samples} training samples ({self.without} of the chosen families have none, "
            f"{self.ambiguous} not exactly one video); evaluations show none, so accuracy in training is no measure of them."
        )


def with_key_frames(sample: Sample, families: Sequence[str]) -> Sample:
    """The sample with its key frames' times at its video, if its family is chosen and it has such times and one video.

    Args:
        families: `prompt.key_frames`.
    """
    if _fate(sample, families) != "shown":
        return sample
    times = tuple(sorted(set(sample.evidence.frames)))
    return replace(sample, media=tuple(replace(m, also=times) if m.kind == "video" else m for m in sample.media))


def splice(samples: Sequence[Sample], families: Sequence[str]) -> tuple[list[Sample], KeyFrames]:
    """All training samples, each by `with_key_frames`, and what became of them.

    Raises:
        ConfigError: a family that no sample has, or no key frame at all.
    """
    known = sorted({sample.family for sample in samples})
    for name in families:
        if name != EVERY and name not in known:
            raise ConfigError(
                f"prompt.key_frames: no training sample is of the family {name!r}; there are {', '.join(known)}."
            )
    fates = Counter(_fate(sample, families) for sample in samples)
    if not fates["shown"]:
        raise ConfigError(
            "prompt.key_frames: no training sample of these families has one video and evidence.frames, so there is "
            "nothing to add; leave it empty or add evidence to the manifest."
        )
    spliced = [with_key_frames(sample, families) for sample in samples]
    frames = sum(len(item.also) for sample in spliced for item in sample.media)
    return spliced, KeyFrames(len(samples), fates["shown"], frames, fates["without"], fates["ambiguous"])


def _fate(sample: Sample, families: Sequence[str]) -> str:
    if EVERY not in families and sample.family not in families:
        return "other"
    if not sample.evidence.frames:
        return "without"
    videos = sum(item.kind == "video" for item in sample.media)
    return "shown" if videos == 1 else "ambiguous"
