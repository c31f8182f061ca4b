"""The main job in two minutes on two CPU cores, on data that needs no download: scikit-learn's 8x8 digits."""

from configs import defaults


def get_config():
    config = defaults.get_config()
    config.method = "byol"
    config.data.name = "digits"
    config.views.recipe = "digits"
    config.encoder.name = "convnet_digits"
    config.encoder.width = 32
    config.projector.hidden = 128
    config.projector.out = 32
    config.predictor.hidden = 128
    config.batch_size = 128
    config.epochs = 40
    config.target.tau = 0.99
    config.eval_every = 5
    config.log_every = 20
    config.probe.knn_k = 20
    config.probe.validation_size = 297
    config.probe.few_labels = 10
    config.probe.few_label_draws = 20
    return config
