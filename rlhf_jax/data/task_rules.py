"""What is true in the tasks of `tasks`, and reward functions that know it.

Each function reads texts alone, (prompts, responses) -> numbers in [0, 1], and
none needs JAX, so that the processes of `programmatic` start fast. A config
names them as 'rlhf_jax.data.task_rules:fluent'. Prompts are as a policy's are
decoded: in their format (`formats`), without control tokens. All texts are
words with single spaces, '.' and '?' among them.

Reviews (`reviews.Reviews`): fluent, on_topic, engaging. COMET: valid_tail.
Knowledge-grounded dialogue: faithful, engaging.
"""

from collections.abc import Sequence
import itertools
import re

from rlhf_jax.data import grammar
from rlhf_jax.data import reviews

# Things of an event: its objects, what one does with them, and what follows.
# A relation's tails hold for all objects of a kind; '{o}' is the object.
KINDS = {
    'food': dict(
        objects='soup bread pasta salad cake stew pie curry',
        verbs='cooks buys shares orders', xEffect=('gets full', 'saves money'),
        xAttr=('hungry', 'generous'), xReact=('satisfied', 'warm'),
        xWant=('to eat the {o}', 'to wash the dishes'),
        xIntent=('to have dinner', 'to feed a friend'),
        xNeed=('to go to the kitchen', 'to find a recipe for the {o}'),
        HinderedBy=('the {o} is burnt', 'the oven is broken')),
    'vehicle': dict(
        objects='car van truck bus scooter tractor taxi jeep',
        verbs='drives washes repairs parks',
        xEffect=('gets home early', 'uses fuel'),
        xAttr=('careful', 'handy'), xReact=('free', 'tired'),
        xWant=('to park the {o}', 'to visit the city'),
        xIntent=('to get to work', 'to avoid walking'),
        xNeed=('to find the keys of the {o}', 'to have a licence'),
        HinderedBy=('the {o} is stolen', 'the road is closed')),
    'instrument': dict(
        objects='piano violin flute drum harp cello banjo trumpet',
        verbs='plays tunes borrows practises',
        xEffect=('makes a loud sound', 'wakes the neighbours'),
        xAttr=('musical', 'creative'), xReact=('proud', 'calm'),
        xWant=('to record the {o}', 'to join a band'),
        xIntent=('to make music', 'to learn a song'),
        xNeed=('to take lessons on the {o}', 'to read notes'),
        HinderedBy=('the {o} is out of tune', 'the neighbours complain')),
    'pet': dict(
        objects='dog cat pony rabbit parrot hamster goat duck',
        verbs='feeds walks brushes adopts',
        xEffect=('gets a happy friend', 'gets covered in hair'),
        xAttr=('gentle', 'caring'), xReact=('loved', 'cheerful'),
        xWant=('to cuddle the {o}', 'to take a photo'),
        xIntent=('to be kind', 'to have company'),
        xNeed=('to call the {o}', 'to open the cage'),
        HinderedBy=('the {o} is asleep', 'the vet says no')),
    'text': dict(
        objects='novel poem letter report diary story essay script',
        verbs='reads writes finishes copies',
        xEffect=('learns new words', 'loses track of time'),
        xAttr=('curious', 'smart'), xReact=('inspired', 'thoughtful'),
        xWant=('to publish the {o}', 'to talk about it'),
        xIntent=('to pass an exam', 'to understand people'),
        xNeed=('to sit down with the {o}', 'to turn on the light'),
        HinderedBy=('the {o} is lost', 'the library is closed')),
    'plant': dict(
        objects='rose tomato fern cactus tulip bean willow herb',
        verbs='waters plants prunes sells',
        xEffect=('gets muddy hands', 'bends down'),
        xAttr=('patient', 'outdoorsy'), xReact=('relaxed', 'hopeful'),
        xWant=('to pick the {o}', 'to rest in the shade'),
        xIntent=('to grow food', 'to make the yard pretty'),
        xNeed=('to dig a hole for the {o}', 'to fill a bucket'),
        HinderedBy=('the {o} is dry', 'the ground is frozen')),
}
RELATIONS = ('xEffect', 'xAttr', 'xReact', 'xWant', 'xIntent', 'xNeed',
             'HinderedBy')
KIND_OF = {o: kind for kind, node in KINDS.items()
           for o in node['objects'].split()}

# What dialogues are about. Knowledge is one sentence with four facts.
KNOWLEDGE = ('the {topic} began in {place} among {people} in the {century} '
             'century .')
FACTS = {
    'topic': 'waltz tango opera chess polo tennis curling baking pottery '
             'weaving falconry sailing fencing archery ballet juggling',
    'place': 'italy france japan peru egypt norway kenya brazil india greece '
             'turkey spain',
    'people': 'monks farmers sailors nobles children soldiers merchants poets',
    'century': 'second fifth eighth tenth twelfth fifteenth seventeenth '
               'nineteenth'}
_SLOTS = {word: slot for slot, words in FACTS.items()
          for word in words.split()}

_ENDS = ('.', '?')
_PERSONAL = {'i', 'we', 'my', 'me', 'you', 'your'}
_ENGAGING_WORDS = 12
_HEAD = re.compile(r'<head> (.*?) </head> <relation> (\S+) </relation>')


def valid_tails(head: str, relation: str) -> list[str]:
  """What may be inferred from an event.

  Args:
    head: such as 'PersonX drives the van'; its last word is the object.
    relation: one of `RELATIONS`.

  Raises:
    ValueError: the object or the relation is unknown.
  """
  thing = head.rpartition(' ')[2]
  if thing not in KIND_OF or relation not in RELATIONS:
    raise ValueError(f'no event {head!r} with the relation {relation!r}')
  return [tail.format(o=thing) for tail in KINDS[KIND_OF[thing]][relation]]


def _sentences(words: Sequence[str]) -> list[list[str]]:
  """Words cut after each '.' and '?'; the last may have neither."""
  sentences = [[]]
  for word in words:
    sentences[-1].append(word)
    if word in _ENDS:
      sentences.append([])
  return [sentence for sentence in sentences if sentence]


def fluent(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
  """Share of well-formed sentences; 0 without any.

  A sentence is so if it has at least three words and ends in '.' or '?', the
  word before that is no intensifier and no negation, no word stands twice in
  a row, and none of its adjectives was in the response before.
  """
  del prompts
  adjectives = grammar.valences(grammar.MOST_ADJECTIVES)

  def score(response):
    seen, sound = set(), []
    sentences = _sentences(response.split())
    for words in sentences:
      uses = [word for word in words if word in adjectives]
      sound.append(
          len(words) > 3 and words[-1] in _ENDS
          and words[-2] not in grammar.MODIFIERS
          and all(a != b for a, b in itertools.pairwise(words))
          and len({*uses}) == len(uses) and not seen.intersection(uses))
      seen.update(uses)
    return sum(sound) / len(sound) if sound else 0.0

  return [score(response) for response in responses]


def on_topic(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
  """Half a point for each of thing and aspect of the prompt that is named.

  Raises:
    ValueError: a prompt asks for no review.
  """
  return [sum(word in response.split() for word in reviews.subject(prompt)) / 2
          for prompt, response in zip(prompts, responses)]


def engaging(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
  """Half for different words, half for turning to somebody.

  .5 * different words / 12, at most .5, and .5 if the response asks ('?') or
  speaks of i, we, my, me, you or your.
  """
  del prompts
  scores = []
  for response in responses:
    words = {*response.split()}
    variety = min(len(words.difference(_ENDS)) / _ENGAGING_WORDS, 1.0)
    scores.append((variety + bool(words & {*_PERSONAL, '?'})) / 2)
  return scores


def valid_tail(prompts: Sequence[str], responses: Sequence[str]
               ) -> list[float]:
  """1 if the response follows from head and relation of the prompt, else 0.

  Raises:
    ValueError: a prompt has no head and relation, or not of this world.
  """
  def score(prompt, response):
    event = _HEAD.search(prompt)
    if event is None:
      raise ValueError(f'prompt must have a head and a relation: {prompt!r}')
    return float(' '.join(response.split()) in valid_tails(*event.groups()))

  return [score(*pair) for pair in zip(prompts, responses)]


def faithful(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
  """Share of the facts of a response that the knowledge has; 0 without any.

  Facts are topics, places, people and centuries, each word once. The topic of
  the knowledge counts for nothing, since naming it says nothing.

  Raises:
    ValueError: a prompt has no knowledge.
  """
  def score(prompt, response):
    _, label, rest = prompt.partition('Knowledge:')
    if not label:
      raise ValueError(f'prompt must have knowledge: {prompt[:80]!r}')
    knowledge = {*rest.partition(' .')[0].split()}
    facts = {word for word in response.split() if word in _SLOTS}
    facts -= {word for word in knowledge if _SLOTS.get(word) == 'topic'}
    return len(facts & knowledge) / len(facts) if facts else 0.0

  return [score(*pair) for pair in zip(prompts, responses)]
