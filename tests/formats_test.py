"""Tests for rlhf_jax.data.formats."""

from absl.testing import absltest
from absl.testing import parameterized

from rlhf_jax import errors
from rlhf_jax.data import formats


class FormatsTest(parameterized.TestCase):

  def test_alpaca_without_input(self):
    self.assertEqual(
        formats.get('alpaca')('Count.', 'One.'),
        (
            'Below is an instruction that describes a task. Write a response '
            'that appropriately completes the request.\n\n### Instruction:\n'
            'Count.\n\n### Response:',
            'One.',
        ),
    )

  def test_alpaca_with_input(self):
    self.assertEqual(
        formats.get('alpaca')('Add.', '3', '1 2'),
        (
            'Below is an instruction that describes a task, paired with an '
            'input that provides further context. Write a response that '
            'appropriately completes the request.\n\n### Instruction:\nAdd.'
            '\n\n### Input:\n1 2\n\n### Response:',
            '3',
        ),
    )

  def test_text_is_data_and_not_a_template(self):
    prompt, response = formats.alpaca('{input} {0} {{7*7}} %s', '{x}', '{y}')
    self.assertIn('### Instruction:\n{input} {0} {{7*7}} %s\n', prompt)
    self.assertIn('### Input:\n{y}\n', prompt)
    self.assertEqual(response, '{x}')

  @parameterized.parameters(
      ('yes', ' yes'), ('  yes \n', ' yes'), ('', ''), (' \n', ''),
      ('a  b\nc', ' a  b\nc'),
  )
  def test_hh_response_has_one_leading_space(self, response, expected):
    prompt = '\n\nHuman: q \n\nAssistant:'
    self.assertEqual(formats.get('hh')(prompt, response), (prompt, expected))

  def test_hh_refuses_an_input(self):
    with self.assertRaisesRegex(ValueError, "input 'x'"):
      formats.hh('\n\nHuman: q\n\nAssistant:', 'r', 'x')

  def test_unknown_name_lists_the_others(self):
    with self.assertRaisesRegex(errors.ConfigError, "'alpca'.*alpaca, hh"):
      formats.get('alpca')


if __name__ == '__main__':
  absltest.main()
