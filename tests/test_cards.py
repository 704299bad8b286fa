import pytest

from ard.cards import ABOUT, model_card


@pytest.mark.parametrize("model", sorted(ABOUT))
def test_a_card_names_its_notebook_settings_and_numbers(model):
    card = model_card(model, "12_x", {"steps": 3, "rate": 5e-4}, {"AP50": 0.81234})
    assert card.startswith(f"# {ABOUT[model][0]}\n") and "notebooks/pretrain/12_x.ipynb" in card
    assert "| steps | 3 |" in card and "| rate | 0.0005 |" in card and "| AP50 | 0.8123 |" in card
