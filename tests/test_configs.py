"""The configurations hold the published numbers, and every one of them describes a run that can be
built.
"""

import runpy
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from suites import check_method, shapes, sizes

from configs import cifar10, cifar10_small, cifar100, defaults, quickstart, stl10
from configs.methods import METHODS, apply_method
from ssl_jax.augment.views import make_views
from ssl_jax.builders import pretraining
from ssl_jax.builders.configurations import known_configs
from ssl_jax.builders.data import build_cadence
from ssl_jax.builders.fields import flat
from ssl_jax.builders.optimizer import build_rules, build_schedule, penalty_kind
from ssl_jax.data.dataset import Description
from ssl_jax.errors import UserError
from ssl_jax.tasks import registry
from ssl_jax.workdir.directory import flatten

ROOT = Path(__file__).parent.parent
# What users' command lines name: none of these may vanish or be renamed.
FIELDS = """
    task seed method epochs batch_size accumulate loss_scale precision steps_per_call devices
    log_every eval_every checkpoint_every data.name data.data_dir data.train_size data.image_size
    views.recipe encoder.name encoder.width encoder.stem encoder.norm projector.hidden projector.out
    predictor.kind predictor.symmetric predictor.every predictor.phase predictor.eps
    predictor.eps_mode predictor.rho target.tau optimizer.name optimizer.learning_rate
    optimizer.momentum optimizer.weight_decay optimizer.decay optimizer.exclude
    optimizer.predictor.learning_rate optimizer.predictor.weight_decay schedule.name probe.protocol
    probe.knn_k
""".split()


@pytest.mark.parametrize("name", known_configs())
def test_loads_by_itself(name):
    config = runpy.run_path(str(ROOT / name))["get_config"]()
    assert isinstance(config, ConfigDict) and config.task in registry.TASKS
    assert config.to_json()  # config.json has to be able to hold it


def test_every_field_that_users_name():
    assert set(FIELDS) <= set(flat(defaults.get_config()))


@pytest.mark.parametrize("module", [cifar10, cifar10_small, cifar100, stl10, quickstart])
def test_no_configuration_invents_a_field(module):
    assert set(flat(module.get_config())) == set(flat(defaults.get_config()))


def test_numbers_of_the_replication():
    """Höppe et al. 2022, section 4, and its published code where the text is silent."""
    config = cifar10.get_config("directpred")
    optimizer, target, predictor = config.optimizer, config.target, config.predictor
    assert (optimizer.name, optimizer.learning_rate, optimizer.momentum) == ("momentum", 0.03, 0.9)
    assert (optimizer.weight_decay, optimizer.decay) == (4e-4, "coupled")
    assert (config.batch_size, config.epochs, config.loss_scale, config.init) == (
        128,
        100,
        1.0,
        "glorot",
    )
    assert (target.tau, target.schedule, config.schedule.name) == (0.996, "constant", "constant")
    assert (predictor.eps, predictor.rho, predictor.eps_mode, predictor.every) == (
        0.1,
        0.3,
        "relative",
        1,
    )
    assert (config.encoder.name, config.encoder.width, config.encoder.stem) == (
        "resnet18",
        64,
        "cifar",
    )
    assert (config.projector.hidden, config.projector.out, config.projector.output_bias) == (
        512,
        128,
        False,
    )
    assert (config.predictor.hidden, config.probe.protocol, config.data.train_size) == (
        512,
        "seed",
        0,
    )


def test_numbers_of_the_original_code():
    """Tian et al. 2021: -2 cos, PyTorch's initialisation, biases throughout, decay on every
    parameter.
    """
    config = stl10.get_config()
    assert (config.method, config.loss_scale, config.init, config.probe.protocol) == (
        "directpred",
        2.0,
        "pytorch",
        "original",
    )
    assert config.projector.output_bias and config.optimizer.exclude == ""
    assert (config.data.name, config.views.recipe) == ("stl10", "stl10")
    # models/resnet_base_network.py replaces torchvision's stem where the data set is CIFAR-10 alone
    assert config.encoder.stem == "imagenet"


# method: (kind, symmetric, averaged target, every, eps, rho)
EXPECTED = {
    "byol": ("mlp", False, True, 1, 0.1, 0.3),
    "byol_sym": ("mlp", True, True, 1, 0.1, 0.3),
    "simsiam": ("mlp", False, False, 1, 0.1, 0.3),
    "simsiam_sym": ("mlp", True, False, 1, 0.1, 0.3),
    "linear": ("linear", False, True, 1, 0.1, 0.3),
    "linear_noema": ("linear", False, False, 1, 0.1, 0.3),
    "directpred": ("direct_pred", False, True, 1, 0.1, 0.3),
    "directpred_noema": ("direct_pred", False, False, 1, 0.1, 0.3),
    "directpred5": ("direct_pred", False, True, 5, 0.1, 0.3),
    "directcopy": ("direct_copy", False, True, 1, 0.3, 0.5),
    "directcopy_noema": ("direct_copy", False, False, 1, 0.3, 0.5),
}


def test_every_published_method_is_there():
    assert set(EXPECTED) <= set(METHODS)


@pytest.mark.parametrize("module", [cifar10, cifar10_small, stl10])
@pytest.mark.parametrize("method", EXPECTED)
def test_method_is_what_it_is_called(module, method):
    config = module.get_config(method)
    p = config.predictor
    assert config.method == method
    assert (p.kind, p.symmetric, config.target.tau > 0, p.every, p.eps, p.rho) == EXPECTED[method]
    parts = pretraining.build(config, 1000, 10, "batch")
    rates = [float(rule.schedule(0)) for rule in parts.rules.values()]
    assert rates == pytest.approx([config.optimizer.learning_rate] * 3)
    if module is not cifar10_small:  # which is too short for them
        assert config.target.tau in (0, 0.996)
        assert float(parts.rules["encoder"].schedule(500)) == pytest.approx(0.03)


@pytest.mark.parametrize("module", [cifar10, cifar10_small, stl10])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_can_be_built_and_gives_each_parameter_one_rule(module, method):
    check_method(module.get_config(method), method)


@pytest.mark.parametrize("module", [cifar10, cifar10_small, stl10, quickstart])
def test_byol_gn_has_no_statistics_of_a_batch(module):
    """Anywhere: neither in encoder and projector, nor in the predictor."""
    config = apply_method(module.get_config(), "byol_gn")
    parts, state = shapes(config, 32)
    assert jax.tree.leaves(state.stats) == []
    names = {str(path[-1]) for path, _ in jax.tree.leaves_with_path(state.params)}
    assert "['scale']" in names  # of the encoder's group norm
    z = jnp.asarray(np.random.default_rng(0).normal(size=(5, config.projector.out)), jnp.float32)
    params, memory = parts.predictor.init(jax.random.key(0))
    whole, one = (parts.predictor.apply(params, memory, z[:n]) for n in (5, 1))
    np.testing.assert_allclose(whole[:1], one, rtol=1e-4, atol=1e-5)


def test_kinds_of_decay_have_the_strength_of_l2_under_momentum():
    config = cifar10_small.get_config("simsiam-lpwd")
    assert (config.method, config.target.tau, config.optimizer.decay) == ("simsiam-lpwd", 0, "pre")
    assert config.optimizer.layerwise == "mean" and config.optimizer.weight_decay == pytest.approx(
        0.2
    )
    l2 = cifar10_small.get_config("simsiam").optimizer
    assert config.optimizer.weight_decay == pytest.approx(l2.weight_decay / (1 - l2.momentum))
    with pytest.raises(UserError, match="decay: got 'pdw', did you mean 'pwd'"):
        cifar10_small.get_config("byol-pdw")


def test_unknown_method_is_answered_with_the_nearest():
    with pytest.raises(UserError, match="method: got 'simsiam_sim', did you mean 'simsiam_sym'"):
        apply_method(defaults.get_config(), "simsiam_sim")


def test_full_size_has_the_published_numbers_of_parameters():
    """As the published codes count them: encoder 11 168 832; heads with and without their output
    biases.
    """
    config = cifar10.get_config("byol")
    parts, state = shapes(config, 32)
    groups = sizes(config, parts, state.params)
    assert [size for size, _ in groups.values()] == [11_168_832, 328_192, 131_584]
    # The replication leaves linear layers' biases undecayed, here 512 in each head, and decays
    # BatchNorm's numbers.
    assert [size - decayed for size, decayed in groups.values()] == [0, 512, 512]

    config = stl10.get_config("byol")
    parts, state = shapes(config, 96)
    groups = sizes(config, parts, state.params)
    assert [groups[name][0] for name in ("projector", "predictor")] == [328_320, 131_712]
    assert all(size == decayed for size, decayed in groups.values())


@pytest.mark.parametrize(
    "platform, precision", [("cuda", "bfloat16"), ("cuda", "float32"), ("tpu", "bfloat16")]
)
def test_full_scale_is_lowered_for_an_accelerator(platform, precision):
    """Here without one: the whole step, with nothing of the CPU's own in it."""
    config = cifar10.get_config("directpred")
    config.precision = precision
    parts, state = shapes(config, 32)
    step = pretraining.build_step(config, parts, make_views(parts.recipe, 32), None)
    image, position = (
        jax.ShapeDtypeStruct((128, 32, 32, 3), "uint8"),
        jax.ShapeDtypeStruct((128,), "int32"),
    )
    batch = {"image": image, "position": position}
    program = (
        jax.jit(step)
        .trace(state, batch, jax.random.key(0))
        .lower(lowering_platforms=(platform,))
        .as_text()
    )
    dtype = {"float32": "f32", "bfloat16": "bf16"}[precision]
    assert "ssl_jax_" not in program and program.count("stablehlo.convolution") > 20
    assert f"tensor<128x32x32x64x{dtype}>" in program


def test_predictor_may_have_its_own_rate_and_decay():
    config = cifar10.get_config("linear")
    config.optimizer.predictor.learning_rate, config.optimizer.predictor.weight_decay = 0.3, 0.0
    rules = pretraining.build(config, 1000, 10, None).rules
    assert {name: (rule.learning_rate, rule.weight_decay) for name, rule in rules.items()} == {
        "encoder": (0.03, 4e-4),
        "projector": (0.03, 4e-4),
        "predictor": (0.3, 0.0),
    }


@pytest.mark.parametrize(
    "fields, kind",
    [
        ({"optimizer.decay": "coupled"}, ""),
        ({"optimizer.decay": "decoupled"}, "decoupled"),
        ({"optimizer.decay": "realtime"}, "realtime"),
        ({"optimizer.decay": "pre", "optimizer.weight_decay": 0.0}, ""),
        (
            {
                "optimizer.decay": "pre",
                "optimizer.weight_decay": 0.0,
                "optimizer.predictor.weight_decay": 4e-4,  # Tian et al. 2021, Table 5
            },
            "pre",
        ),
        (
            {"optimizer.decay": "decoupled", "optimizer.predictor.weight_decay": 0.0},
            "decoupled",
        ),
    ],
)
def test_a_penalty_is_there_where_any_group_decays_by_more_than_l2(fields, kind):
    config = cifar10_small.get_config()
    config.update_from_flattened_dict(fields)
    assert penalty_kind(config, build_rules(config, pretraining.GROUPS, 100, 10)) == kind


def test_the_predictors_decay_alone_is_measured():
    """The columns of a step of a run where nothing else decays."""
    config = quickstart.get_config()
    config.update_from_flattened_dict(
        {
            "optimizer.decay": "decoupled",
            "optimizer.weight_decay": 0.0,
            "optimizer.predictor.weight_decay": 4e-4,
        }
    )
    parts = pretraining.build(config, 10, 5, None)
    image = jnp.zeros((4, 8, 8, 1))
    step = pretraining.build_step(config, parts, lambda keys, image: (image, image), None)
    state = jax.eval_shape(
        pretraining.make_init(parts, Description("made", 100, 10, 100, (8, 8, 1), 2, ("a", "b"))),
        jax.random.key(0),
    )
    batch = {"image": image, "position": jnp.arange(4)}
    metrics = jax.eval_shape(step, state, batch, jax.random.key(0))[1]
    assert {"opposing_ratio", "opposing_fraction"} <= set(metrics)
    assert "wd_opposing_ratio" not in metrics


@pytest.mark.parametrize("warmup, peak_at", [(0.5, 5), (1, 10), (0.04, None), (0.06, 1)])
def test_warm_up_may_be_a_fraction_of_an_epoch(warmup, peak_at):
    """Of ten steps each; less than half a step is refused."""
    config = cifar10_small.get_config()
    config.schedule.warmup_epochs = warmup
    config.schedule.name = "constant"

    def build():
        return build_schedule(config, "constant", 0.3, 100, 10)

    if peak_at is None:
        with pytest.raises(
            UserError, match=r"schedule.warmup_epochs: got 0.04 epochs, .* 10 steps"
        ):
            build()
        return
    rates = [float(build()(step)) for step in range(peak_at + 2)]
    expected = [0.3 * min(step / peak_at, 1) for step in range(peak_at + 2)]
    assert rates == pytest.approx(expected)


@pytest.mark.parametrize("field", ["every", "cycle"])
def test_a_length_that_is_no_step_is_refused(field):
    config = cifar10_small.get_config()
    config.schedule.name = {"every": "step", "cycle": "triangular"}[field]
    config.schedule[field] = 0.04
    with pytest.raises(UserError, match=f"schedule.{field}: got 0.04 epochs, .* 10 steps"):
        build_schedule(config, config.schedule.name, 0.3, 100, 10)


def test_cifar_100_is_cifar_10_with_other_images():
    """Mean and deviation: github.com/weiaicunzai/pytorch-cifar100, conf/global_settings.py."""
    one, other = (
        flatten(module.get_config("directpred").to_dict()) for module in (cifar100, cifar10)
    )
    changed = {name: value for name, value in one.items() if value != other.get(name)}
    assert set(changed) == {"data.name", "views.mean", "views.std"}
    assert changed["data.name"] == "cifar100"
    mean, std = (0.50707516, 0.48654887, 0.44091784), (0.26733429, 0.25643846, 0.27615047)
    assert changed["views.mean"] == pytest.approx(mean, abs=6e-5)
    assert changed["views.std"] == pytest.approx(std, abs=6e-5)


def test_cadence_counts_epochs_in_steps():
    config = cifar10.get_config()
    config.epochs, config.eval_every, config.checkpoint_every = 10, 5, 0
    cadence = build_cadence(config, 390)
    assert cadence == (3900, config.log_every, 1950, 3900, 0)
