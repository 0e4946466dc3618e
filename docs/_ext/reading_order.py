"""The order of the gallery: that in which somebody who knows nothing should read it."""

from pathlib import Path

_EXAMPLES = """
quickstart noise_calibration gaussian_and_rademacher label_noise sample_complexity
broken_assumptions condition_number image_classification text_classification grid_search
gradients_only_server federated_rounds
adversarial_risk_from_gradients adversarial_model_selection certified_rows
network_identity network_spectrum network_training
""".split()  # noqa: SIM905


def reading_order(path):
    return _EXAMPLES.index(Path(path).stem.removeprefix("plot_"))
