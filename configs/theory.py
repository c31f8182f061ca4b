"""What the linear theory predicts, drawn: `configs/theory.py:FIGURE`, by default all of them.

FIGURE is figure3, figure4, figure5, figure7, figure8, figure9, figure10 (numbered as in Tian et al. 2021, arXiv
2102.06810), phase_diagram, or all. Nothing is trained; it needs diffrax: pip install -e '.[theory]'.
"""

from ml_collections import ConfigDict


def get_config(figure: str = "all"):
    config = ConfigDict()
    config.task = "theory"
    config.figure = figure
    return config
