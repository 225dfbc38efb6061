"""The arms of the lift trial: what each changes about the training of one and the same classifier.

Steps, batch, optimizer, network and seeds are equal in all. An arm is data alone; `trial.run_trial` carries it out.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum


class Added(Enum):
    """Rows that an arm puts beside the real ones."""

    SYNTHETIC = "synthetic"                          # the generator's, under the labels they were asked for
    SHUFFLED = "shuffled"                            # the same under labels shuffled among them
    DUPLICATES = "duplicates"                        # real training rows once more
    SMOTE = "smote"                                  # between a real row and one of its nearest of the class
    REAL = "real"                                    # real rows that the others don't train on


@dataclass(frozen=True)
class Arm:
    """One way to train the classifier."""

    name: str
    title: str
    augment: bool = True                             # classical augmentation of every batch
    balanced: bool = False                           # classes are drawn evenly
    logit_adjustment: float = 0.0                    # tau of Menon et al. 2021
    strength: float = 1.0                            # factor on the classical augmentation
    added: Added | None = None
    real: bool = True                                # False: the added rows alone


PLAIN = Arm("A0", "plain", augment=False)
AUGMENTED = Arm("A1", "classical augmentation")
BALANCED = Arm("A2", "classical augmentation, balanced sampling", balanced=True)
ADJUSTED = Arm("A3", "classical augmentation, logit adjustment", logit_adjustment=1.0)
SMOTE = Arm("A4", "classical augmentation, SMOTE", balanced=True, added=Added.SMOTE)
WITHOUT_SYNTHESIS = (PLAIN, AUGMENTED, BALANCED, ADJUSTED, SMOTE)
STRENGTHS = (1.5, 0.5, 2.0)
TAUS = (0.5, 1.5)


def tuned(arm: Arm, *, strength: float | None = None, tau: float | None = None) -> Arm:
    """`arm` at another strength of augmentation, or of logit adjustment."""
    if strength is not None:
        return replace(arm, name=f"{arm.name}×{strength:g}", title=f"{arm.title} ({strength:g} times as strong)", strength=strength)
    return replace(arm, name=f"{arm.name}τ{tau:g}", title=f"{arm.title} (τ = {tau:g})", logit_adjustment=tau or 0.0)


def stronger(arm: Arm) -> list[Arm]:
    """`arm` under stronger classical augmentation, where it isn't yet: what synthesis is most easily mistaken for."""
    return [tuned(arm, strength=STRENGTHS[0])] if arm.augment and arm.strength == 1 else []


def ladder(ratios: Sequence[float], quick: bool) -> list[tuple[Arm, float]]:
    """Ways to train without synthesis as (arm, SMOTE's ratio), the most promising first.

    A trial takes as many of them as it tries ways with synthesis, so that neither side is tuned more than the other; a quick one adds the
    best of them with stronger augmentation.
    """
    smote = [(SMOTE, ratio) for ratio in sorted(ratios, reverse=True)]
    plain = [(arm, 0.0) for arm in (BALANCED, ADJUSTED, AUGMENTED)]
    first = [*plain, *smote] if quick else [*plain, smote[0], (PLAIN, 0.0)]
    otherwise = [(tuned(arm, strength=s), 0.0) for s in STRENGTHS for arm in (BALANCED, ADJUSTED)]
    adjusted = [(tuned(ADJUSTED, tau=tau), 0.0) for tau in TAUS]
    uneven = [(tuned(AUGMENTED, strength=s), 0.0) for s in STRENGTHS]
    return [*first, *otherwise, *adjusted, *(smote[1:] if not quick else []), *uneven]


SYNTHETIC = Arm("G1", "classical augmentation, synthetic", added=Added.SYNTHETIC)
FILTERED = Arm("G2", "classical augmentation, filtered synthetic", added=Added.SYNTHETIC)


SYNTHETIC_ALONE = Arm("S1", "classical augmentation, balanced sampling, synthetic images alone", balanced=True,
                      added=Added.SYNTHETIC, real=False)


def with_synthesis(base: Arm) -> Arm:
    """G3: `base` with synthetic rows beside the real ones."""
    return replace(base, name="G3", title=f"{base.title}, synthetic", added=Added.SYNTHETIC)


def other_strength(base: Arm) -> Arm:
    """`base` under stronger augmentation, or under the usual where it is at another strength already."""
    return next(iter(stronger(base)), None) or next(arm for arm in (BALANCED, ADJUSTED) if base.name.startswith(arm.name))


def with_synthesis_otherwise(base: Arm) -> Arm:
    """G3×1.5 or G3×1: `base` at the other strength of classical augmentation, with synthetic rows.

    With more images to see a classifier may bear more distortion than is best for the few real ones alone; and what is best for these
    need not be where synthesis shows the variation itself.
    """
    arm = other_strength(base)
    return replace(with_synthesis(arm), name=f"G3×{arm.strength:g}")


def controls(base: Arm) -> tuple[Arm, ...]:
    """What must not help (N1, N2) and what must where there is headroom (O1), each added to `base`."""
    kinds = (("N1", "duplicates", Added.DUPLICATES), ("N2", "synthetic under shuffled labels", Added.SHUFFLED),
             ("O1", "as many extra real images, the scarcest classes first", Added.REAL))
    return tuple(replace(base, name=name, title=f"{base.title}, {title}", added=added) for name, title, added in kinds)
