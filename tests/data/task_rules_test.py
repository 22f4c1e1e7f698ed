"""Tests for rlhf_jax.data.task_rules."""

import subprocess
import sys

from absl.testing import absltest
from absl.testing import parameterized

from rlhf_jax.data import task_rules

REVIEW = 'review the phone and its price :'
COMET = ('<head> PersonX drives the van </head> <relation> {} </relation> '
         '[GEN]')
KNOWN = ('Knowledge: the waltz began in italy among monks in the tenth century '
         '. my friend likes the waltz . where did it begin ?')


class ReviewsTest(parameterized.TestCase):

  @parameterized.parameters(
      ('the phone was beautiful .', 1.),
      ('the phone was beautiful . its price is horrible .', 1.),
      ('the phone was beautiful', 0.),  # does not end
      ('the phone was beautiful . its price is', .5),
      ('the phone was beautiful . it is beautiful .', .5),  # said before
      ('we think it is beautiful and beautiful .', 0.),
      ('the phone was beautiful very .', 0.),  # dangles
      ('the phone was beautiful not .', 0.),
      ('the phone was was horrible .', 0.),  # twice in a row
      ('the . and the . and it was .', 1 / 3),  # three words at least
      ('have you tried it ?', 1.),
      ('.', 0.),
      ('', 0.))
  def test_fluent(self, response, expected):
    self.assertAlmostEqual(task_rules.fluent([REVIEW], [response])[0],
                           expected)

  @parameterized.parameters(
      ('the phone was bad .', .5), ('its price is bad .', .5),
      ('this phone has bad price .', 1.), ('phone phone .', .5),
      ('the hotel was bad .', 0.), ('', 0.))
  def test_on_topic(self, response, expected):
    self.assertEqual(task_rules.on_topic([REVIEW], [response]), [expected])

  def test_on_topic_reads_the_last_request(self):
    prompt = f'Human: {REVIEW} Assistant: no . Human: review the hotel and its'
    self.assertEqual(task_rules.on_topic(
        [f'{prompt} staff : Assistant:'] * 2,
        ['the phone price .', 'the hotel staff .']), [0., 1.])
    with self.assertRaisesRegex(ValueError, 'thing and its aspect'):
      task_rules.on_topic(['hello'], ['the phone .'])

  @parameterized.parameters(
      ('the phone was bad .', 4 / 24),  # four words of twelve
      ('the the the phone .', 2 / 24),
      ('i found the phone bad .', 5 / 24 + .5),
      ('have it tried ?', 3 / 24 + .5),
      ('a b c d e f g h j k l m n o p', .5),  # twelve are enough
      ('', 0.))
  def test_engaging(self, response, expected):
    self.assertAlmostEqual(task_rules.engaging([REVIEW], [response])[0],
                           expected)


class CometTest(parameterized.TestCase):

  @parameterized.parameters(
      ('xWant', 'to park the van', 1.), ('xWant', 'to visit the city', 1.),
      ('xWant', 'to park the bus', 0.),  # another object
      ('xNeed', 'to park the van', 0.),  # another relation
      ('xWant', 'to park the', 0.), ('xWant', 'to eat the van', 0.),
      ('xWant', 'none', 0.), ('xWant', '', 0.), ('xAttr', 'careful', 1.))
  def test_valid_tail(self, relation, tail, expected):
    self.assertEqual(
        task_rules.valid_tail([COMET.format(relation)], [tail]), [expected])

  def test_errors(self):
    for prompt, message in (('hello', 'head and a relation'),
                            (COMET.format('xAnd'), "relation 'xAnd'"),
                            (COMET.format('xWant').replace('van', 'moon'),
                             'PersonX drives the moon')):
      with self.assertRaisesRegex(ValueError, message):
        task_rules.valid_tail([prompt], ['none'])

  def test_every_relation_has_tails_of_its_own(self):
    for kind, node in task_rules.KINDS.items():
      tails = [tail for relation in task_rules.RELATIONS
               for tail in node[relation]]
      self.assertLen(set(tails), len(tails), kind)
    self.assertLen(task_rules.KIND_OF, 48)


class DialogueTest(parameterized.TestCase):

  @parameterized.parameters(
      ('it began in italy .', 1.),
      ('it began in japan .', 0.),
      ('the waltz began among monks in italy .', 1.),  # the topic is free
      ('the tango began in italy .', .5),
      ('it began in italy . i saw it in egypt last year .', .5),
      ('it began in italy in italy in japan .', .5),  # each once
      ('that is great .', 0.),
      ('the waltz is great .', 0.),
      ('', 0.))
  def test_faithful(self, response, expected):
    self.assertEqual(task_rules.faithful([KNOWN], [response]), [expected])

  def test_only_knowledge_is_known(self):
    prompt = KNOWN.replace('where did', 'in japan ? where did')
    self.assertEqual(
        task_rules.faithful([prompt], ['it began in japan .']), [0.])
    with self.assertRaisesRegex(ValueError, 'must have knowledge'):
      task_rules.faithful(['where ?'], ['it began in japan .'])


class ImportTest(absltest.TestCase):

  def test_without_jax(self):
    code = ('import sys, rlhf_jax.data.task_rules; '
            'sys.exit("jax" in sys.modules)')
    self.assertEqual(subprocess.run(
        [sys.executable, '-c', code],
        env={'PYTHONPATH': ':'.join(sys.path)}).returncode, 0)


if __name__ == '__main__':
  absltest.main()
