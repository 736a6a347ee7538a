"""What a dishonest site sends or trains on: pure functions.

An attack on the update sees everything: the honest updates of this round, what the dishonest sites would have sent if
they were honest, and how far the model has come. All dishonest sites act together. An attack on the data changes the
rows that a dishonest site trains on, and may then scale what came of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]
Change: TypeAlias = "Callable[[Scene], Floats]"


@dataclass(frozen=True)
class Scene:
    """What an omniscient attacker knows in a round. All arrays are float64; rows are members."""

    honest: Floats
    """(honest, parameters): the updates of the others."""
    own: Floats
    """(dishonest, parameters): what the dishonest sites' own training gave, on poisoned rows if the attack poisons."""
    first: Floats
    """(honest, parameters): the others' updates of the run's first round."""
    progress: Floats
    """(parameters,): the checkpoint less the run's genesis."""
    chance: np.random.Generator

    @property
    def mean(self) -> Floats:
        """(parameters,): the mean of the honest updates."""
        return np.asarray(self.honest.mean(0))

    def all_send(self, update: Floats) -> Floats:
        """(dishonest, parameters): every dishonest site sends this one."""
        return np.tile(update, (len(self.own), 1))


@dataclass(frozen=True)
class Attack:
    """One attack: what it does to the update and to the rows it was trained on."""

    source: str
    """Who described it."""
    change: Change = lambda scene: scene.own
    flips_labels: bool = False
    plants_trigger: bool = False


def sign_flip(scene: Scene) -> Floats:
    """The opposite of what the honest want."""
    return scene.all_send(-scene.mean)


def scaled(factor: float) -> Change:
    """The site's own update, `factor` times as long."""
    return lambda scene: factor * scene.own


def inner_product(factor: float) -> Change:
    """-factor * mean of the honest: a merge that lets it through has a negative inner product with their mean.

    A small factor hides among the honest updates from rules that choose by distance, a large one wins by force.
    """
    return lambda scene: scene.all_send(-factor * scene.mean)


def a_little_is_enough(scene: Scene) -> Floats:
    """The honest mean less z standard deviations in every coordinate: some honest sites look stranger."""
    z = max(DEVIATIONS_MIN, deviations(len(scene.honest), len(scene.own)))
    return scene.all_send(scene.mean - z * scene.honest.std(0))


DEVIATIONS_MIN = 1.5
"""The paper's z is 0 for the few sites here, which would be no attack; this is what ByzFL takes if it is not told."""


def deviations(honest: int, dishonest: int) -> float:
    """The paper's z: for n members, f of them dishonest, n // 2 + 1 - f honest ones are expected further out."""
    supporters = (honest + dishonest) // 2 + 1 - dishonest
    return NormalDist().inv_cdf((honest - supporters) / honest)


def mimic(scene: Scene) -> Floats:
    """Every dishonest site sends what one honest site sent, always the same: the one that stands furthest out.

    That is the one with the greatest projection on the direction in which the first round's updates vary most.
    """
    centred = scene.first - scene.first.mean(0)
    weights, sides = np.linalg.eigh(centred @ centred.T)
    along = sides[:, -1] * np.sqrt(max(weights[-1], 0.0))
    return scene.all_send(scene.honest[int(np.argmax(np.abs(along)))])


def noise(scene: Scene) -> Floats:
    """Normal noise, ten times as long as the honest updates are on average."""
    length = 10 * float(np.linalg.norm(scene.honest, axis=1).mean())
    drawn = scene.chance.standard_normal(scene.own.shape)
    return np.asarray(length * drawn / np.linalg.norm(drawn, axis=1, keepdims=True))


def undo(scene: Scene) -> Floats:
    """Back towards the start of the run, with all the length that the longest honest update has."""
    length = float(np.linalg.norm(scene.honest, axis=1).max())
    way = float(np.linalg.norm(scene.progress))
    return scene.all_send(-scene.progress * (length / way) if way else -scene.mean)


def nothing(scene: Scene) -> Floats:
    """No change at all."""
    return np.zeros_like(scene.own)


def not_a_number(scene: Scene) -> Floats:
    """The site's own update with one value that is no number."""
    sent = scene.own.copy()
    sent[:, sent.shape[1] // 2] = np.nan
    return sent


def boosted(scene: Scene) -> Floats:
    """The site's own update, so long that a mean of all becomes it."""
    return scene.own * ((len(scene.honest) + len(scene.own)) / len(scene.own))


ATTACKS: Mapping[str, Attack] = {
    "none": Attack("nobody is dishonest"),
    "sign_flip": Attack("Li et al., RSA, AAAI 2019", sign_flip),
    "scale_10": Attack("Bagdasaryan et al., How To Backdoor Federated Learning, AISTATS 2020", scaled(10)),
    "scale_1000": Attack("Bagdasaryan et al., AISTATS 2020", scaled(1000)),
    "flip_10": Attack("Blanchard et al., Machine Learning with Adversaries, NeurIPS 2017", inner_product(10)),
    "flip_1000": Attack("Blanchard et al., NeurIPS 2017", inner_product(1000)),
    "little": Attack("Baruch et al., A Little Is Enough, NeurIPS 2019", a_little_is_enough),
    "inner_product": Attack("Xie et al., Fall of Empires, UAI 2020", inner_product(0.5)),
    "fall_of_empires": Attack("Xie et al., Fall of Empires, UAI 2020", inner_product(0.1)),
    "mimic": Attack("Karimireddy et al., Byzantine-Robust Learning on Heterogeneous Datasets, ICLR 2022", mimic),
    "noise": Attack("Blanchard et al., NeurIPS 2017", noise),
    "undo": Attack("ours: an attacker that knows that lengths are bounded", undo),
    "label_flip": Attack("Tolpegin et al., Data Poisoning Attacks Against Federated Learning, 2020", flips_labels=True),
    "backdoor": Attack("Bagdasaryan et al., AISTATS 2020; Gu et al., BadNets, 2017", boosted, plants_trigger=True),
    "zero": Attack("Lin et al., Free-riders in Federated Learning, 2019", nothing),
    "nan": Attack("a value that no merge takes: refused, and the site is left out", not_a_number),
}
