"""The short help of the Lightning verbs, which needs neither torch nor five hundred lines."""

from __future__ import annotations

_WHAT = {
    "fit": "Train a scene, score its test frames, draw them. The same command continues or shows the same run.",
    "validate": "Losses and image quality of a trained run on its validation frames.",
    "test": "Render, score and draw the test frames of a trained run again.",
    "predict": "Write the predictions folder of a trained run, without scoring it.",
}


def short_help(verb: str) -> str:
    """The text of ``panbench VERB --help``."""
    return f"""\
usage: panbench {verb} --config FILE [--KEY VALUE ...]
       panbench {verb} RUN_FOLDER

{_WHAT[verb]}

  --config FILE                recipe; configs/ligs_scannet.yaml and the like are found from anywhere
  --data.root DIR              folder of scenes; without it a built-in SYNTHETIC room is used
  --data.scene NAME            scene under the root
  --data.masks NAME            pseudo-masks: the folder masks_NAME of the scene, or a path
  --model FILE                 another base, such as configs/base/3dgs.yaml
  --model.head FILE            another head, such as configs/head/none.yaml
  --model.KEY, --model.head.KEY, --data.KEY, --trainer.KEY VALUE
                               one value; a wrong key is answered with the nearest right one
  --trainer.max_steps N        length of the training
  --seed_everything N          seed; part of the run's folder
  --run.root DIR               folder of all runs (runs)
  --run.protocols '[A, B]'     protocols to score under, the main one first
  --run.wandb.enable true      log to Weights & Biases too (offline unless --run.wandb.offline false)
  --run.tensorboard true       write the run's tensorboard/ too
  --fresh                      start over, whatever is in the run's folder
  --print_config               show the complete configuration and stop
  --help-all                   every option of every part
"""
