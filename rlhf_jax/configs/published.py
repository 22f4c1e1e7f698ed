"""The papers' models and data by their public names, for the size `full`.

Nothing is fetched. `use` gives a config the shapes, from which `--plan` says
what a machine must have; to start from the weights, download a model where
there is a network, and give its directory by --config.policy.model.path (and
proxy, gold) with --config.data.files.tokenizer. The README in
`experiments/launch` has the commands.
"""

from ml_collections import config_dict

VOCABULARY = 50_304  # of Pythia, padded
_PYTHIA = dict(family='gpt_neox')
MODELS = {
    'EleutherAI/pythia-14m': _PYTHIA | dict(
        hidden_size=128, num_layers=6, num_heads=4),
    'EleutherAI/pythia-70m': _PYTHIA | dict(
        hidden_size=512, num_layers=6, num_heads=8),
    'EleutherAI/pythia-1b': _PYTHIA | dict(
        hidden_size=2048, num_layers=16, num_heads=8),
    'EleutherAI/pythia-1.4b': _PYTHIA | dict(
        hidden_size=2048, num_layers=24, num_heads=16),
    'EleutherAI/pythia-6.9b': _PYTHIA | dict(
        hidden_size=4096, num_layers=32, num_heads=32),
    'EleutherAI/gpt-j-6b': dict(
        family='gptj', hidden_size=4096, num_layers=28, num_heads=16),
    'huggyllama/llama-7b': dict(
        family='llama', hidden_size=4096, num_layers=32, num_heads=32,
        intermediate_size=11_008),
}


def use(config: config_dict.ConfigDict, **names: str):
  """Gives parts of a config the shapes of published models, in bfloat16.

  Args:
    config: of `base.world`.
    **names: 'policy', 'proxy' or 'gold', a key of `MODELS` each.
  """
  for part, name in names.items():
    model = config[part].model
    shape = {'intermediate_size': 4 * MODELS[name]['hidden_size'],
             **MODELS[name]}
    model.update(shape, dtype='bfloat16', remat='full')
