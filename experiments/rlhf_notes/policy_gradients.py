r"""RLHF, as lecture notes tell it: four policy gradients side by side.

Claim: REINFORCE takes one update from each batch of samples, which is
inefficient; a critic lowers the variance of the gradient; PPO, clipped or with
a KL penalty, makes several updates on the same samples and so learns more from
them. RLHF leaves responses less diverse than SFT does.

Run:      python -m rlhf_jax.main --workdir=runs/policy_gradients \
            --config=experiments/rlhf_notes/policy_gradients.py:laptop
Sizes:    :smoke (CI, seconds)  :laptop (2 cores, minutes)  :full
Hardware: laptop: 2 CPU cores. full: eight; see experiments/launch; not yet run.
Measured: README.md beside this file (laptop).
Differs:  the notes have no experiment. All four have the same prompts, as many
          responses, one reward model on clean pairs, a KL coefficient of .05
          and one learning rate; PPO makes 4 epochs on a rollout, the others 1.
          The step before the first is the SFT policy, whose diversity
          (distinct_2) the last steps are compared with.
"""

from rlhf_jax.configs import base

METHODS = {'reinforce': 'REINFORCE', 'actor_critic': 'actor-critic',
           'ppo': 'PPO', 'ppo_kl_penalty': 'PPO, KL penalty'}


def get_config(size: str = 'laptop'):
  """The config of one size."""
  config = base.online_config(size)
  config.title = 'RLHF notes: REINFORCE, actor-critic and both forms of PPO'
  config.conditions.clean = dict(num_members=1)
  config.online.kl.coef = 0.05
  if size != 'smoke':
    config.seeds = (1, 2, 3)
    config.online.update(num_steps=60)
    config.online.optimizer.learning_rate = 1e-3
    config.online.evaluation.every = 6
  for algorithm, title in METHODS.items():
    config.runs[algorithm] = dict(
        algorithm=algorithm, labels=dict(method=title),
        updates=dict(num_epochs=4 if algorithm.startswith('ppo') else 1))
  config.figure = dict(
      kind='curves', x='step', y=('proxy', 'gold', 'distinct_2'),
      line=('method',), baseline=dict(method='REINFORCE'),
      columns=('proxy', 'gold', 'rule', 'kl_k1', 'distinct_2', 'length'))
  return base.finish(config, smoke=('reinforce', 'ppo_kl_penalty'))
