"""How the small worlds are, unless a config says otherwise."""

from ml_collections import config_dict

# Responses are long enough for three sentences with the longest repeats.
_LONG_TAIL = dict(
    max_prompt_length=9, max_response_length=48, num_adjectives=600,
    zipf=1.0, tail=1.5, most=6, fitting=0.5, obedience=0.9)
WORLDS = {  # by the names of `data.small_worlds`
    'reviews': dict(
        max_prompt_length=8, max_response_length=24, num_adjectives=240,
        zipf=1.0, typo_rate=0.0, advert_rate=0.0,
        sentences=(0.45, 0.52, 0.03)),
    'long_tail': _LONG_TAIL,
    'emphasis': _LONG_TAIL | dict(emphasis=4.0)}


def smoke(config: config_dict.ConfigDict):
  """Every branch and no meaning: of everything as little as will do."""
  config.data.update(num_demonstrations=256, num_pair_prompts=96,
                     num_eval_prompts=4)
  small = dict(family='llama', hidden_size=16, num_layers=1, num_heads=2,
               intermediate_size=32)
  for part in (config.policy, config.proxy, config.gold):
    part.model.update(small)
    part.batch_size = 16
  config.policy.num_steps = config.gold.num_steps = 8
  config.gold.held_out = 64
  config.proxy.update(held_out=32, num_epochs=1, num_members=2)
  config.proxy.sft.update(num_steps=8, batch_size=16)
