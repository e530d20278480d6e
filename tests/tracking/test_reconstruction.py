"""Forms of AFL are known by the word ``afl`` in the name of their loss."""

import pytest
from omegaconf import OmegaConf

from afl.config import CONF, composed
from afl.tracking import names_afl


@pytest.mark.parametrize(
    "text",
    ["afl", "afl_anchored_head", "ablation/afl_head", "my_afl", "fcos-shapes-afl", "| fl | ablation/afl |"],
)
def test_forms_of_afl(text):
    assert names_afl(text)


@pytest.mark.parametrize(
    "text", ["", "fl", "cbfl", "cbfl_deferred", "baflo_head", "ablation/snafl", "afl2", "AFL"]
)
def test_other_losses(text):
    assert not names_afl(text)


def test_the_names_of_the_losses_agree_with_the_gates_and_weights_that_only_afl_has():
    own = ("AdaptiveGradient", "ScheduledGradient", "AnchoredGradient", "RelativeCap", "TemperedClassWeights")
    files = [path.relative_to(CONF / "loss").with_suffix("") for path in (CONF / "loss").rglob("*.yaml")]
    configs = {str(name): OmegaConf.to_yaml(composed([f"+loss={name}"], None)) for name in files}
    found = {name: any(f"afl.losses.{part}\n" in text for part in own) for name, text in configs.items()}
    assert found == {name: names_afl(name) for name in found} and 10 < sum(found.values()) < len(found)
