"""CIFAR-10 at a scale for two CPU cores: `configs/cifar10_small.py:METHOD`, the first 20 000
images, 6 epochs.

A network of four convolutions (128 features). 936 steps are too few for the replication's learning
rate, decay and target rate. What weight decay does to the eigenvalues goes by rate * decay * steps:
0.03 * 4e-4 * 39 000 = 0.47 there, and 0.025 (the mean of a cosine from 0.05) * 0.02 * 936 = 0.47
here.

The rate was chosen on training images 45 000 to 50 000, which neither pretraining nor
docs/replication.md uses, by ridge / kNN accuracy there (untrained encoder .361 / .351), pretraining
on the first 20 000:

    directpred, 3 epochs, tau 0.99, cosine         byol, 6 epochs, tau 0.99, cosine
      rate 0.2,  decay 0.004   .415 / .346           rate 0.2, decay 4e-4   .431 / .391
      rate 0.1,  decay 0.008   .432 / .373           rate 0.1, decay 4e-4   .423 / .388
      rate 0.05, decay 0.016   .430 / .393 <-      byol, 9 epochs, tau 0.996, constant
      rate 0.05, decay 4e-4    .391 / .383           rate 0.03, decay 4e-4  .420 / .401

At rate 0.2 and decay 4e-4, directpred was on its way to collapse where byol was not: relative
spread 0.48 and effective rank 1.5 of 64 after 338 of 1 248 steps.

`configs/cifar10_small.py:METHOD-KIND`, with KIND wd, rwd, pwd or lpwd, puts another kind of weight
decay in place of L2, of the same mean strength: `configs/methods.py:apply_decay`.
"""

from configs import defaults
from configs.methods import apply_decay, apply_method


def get_config(method: str = "byol"):
    config = defaults.get_config()
    config.data.train_size = 20_000
    config.encoder.name = "convnet"
    config.encoder.width = 32
    config.init = "pytorch"
    config.projector.hidden = 256
    config.projector.out = 64
    config.predictor.hidden = 256
    config.epochs = 6
    config.optimizer.learning_rate = 0.05
    config.optimizer.weight_decay = 0.02
    config.schedule.name = "cosine"
    config.target.tau = 0.99
    config.eval_every = 2
    config.checkpoint_every = 2
    config.log_every = 26  # six rows an epoch
    method, dash, kind = method.partition("-")
    config = apply_method(config, method)
    return apply_decay(config, kind) if dash else config
