'use strict';
// Searches, filters, sorts and shows samples. All of a sample is text.
(() => {
  const all = DATA.samples, count = all.study.length;
  const list = document.getElementById('sample-list');
  if (!list) return;
  const at = (name) => document.getElementById(`sample-${name}`);
  const more = at('more'), PAGE = 25;
  const numbers = Object.keys(all.numbers);
  const texts = Array.from({length: count}, (_, i) =>
    `${all.texts.prompt[i] ?? ''}\n${all.texts.response[i] ?? ''}`
      .toLowerCase());
  let found = [], shown = 0;

  function choices(name, values, texts) {
    const select = at(name), unique = [...new Set(values)];
    option(select, '', 'all');
    for (const value of unique) option(select, value, texts?.(value) ?? value);
    select.closest('label').hidden = unique.length < 2;
  }
  choices('study', all.study, (i) => DATA.studies[i].name);
  choices('run', all.run);
  choices('phase', all.phase);
  option(at('sort'), '', 'as they come');
  option(at('column'), '', 'all');
  for (const name of numbers) {
    option(at('sort'), `${name}/-1`, `${all.names[name]}, highest first`);
    option(at('sort'), `${name}/1`, `${all.names[name]}, lowest first`);
    option(at('column'), name, all.names[name]);
  }

  function filter() {
    const words = at('search').value.toLowerCase().split(/\s+/)
      .filter(Boolean);
    const study = at('study').value, run = at('run').value;
    const phase = at('phase').value;
    const column = all.numbers[at('column').value];
    const bound = (name, absent) => at(name).value === '' ?
      absent : Number(at(name).value);
    const low = bound('low', -Infinity), high = bound('high', Infinity);
    const rows = [];
    for (let i = 0; i < count; i++) {
      if (study && String(all.study[i]) !== study) continue;
      if (run && all.run[i] !== run) continue;
      if (phase && all.phase[i] !== phase) continue;
      if (column && (column[i] === null || column[i] < low ||
                     column[i] > high)) continue;
      if (words.every((word) => texts[i].includes(word))) rows.push(i);
    }
    const [name, sign] = at('sort').value.split('/');
    const by = all.numbers[name];
    if (by) {  // what has none comes last
      rows.sort((i, k) => by[i] === null ? (by[k] === null ? 0 : 1) :
        by[k] === null ? -1 : sign * (by[i] - by[k]));
    }
    return [rows, words];
  }

  function marked(node, text, words) {
    const lower = text.toLowerCase();
    // A letter may be longer in lower case; then nothing is marked.
    if (!words.length || lower.length !== text.length) {
      node.append(text);
      return;
    }
    let from = 0;
    while (from < text.length) {
      let next = -1, length = 0;
      for (const word of words) {
        const where = lower.indexOf(word, from);
        if (where >= 0 && (next < 0 || where < next)) {
          [next, length] = [where, word.length];
        }
      }
      if (next < 0) break;
      const mark = document.createElement('mark');
      mark.textContent = text.slice(next, next + length);
      node.append(text.slice(from, next), mark);
      from = next + length;
    }
    node.append(text.slice(from));
  }

  function made(tag, className, text) {
    const node = document.createElement(tag);
    node.className = className;
    if (text !== undefined) node.textContent = text;
    return node;
  }

  function card(i, words) {
    const box = made('article', 'sample'), chips = made('div', 'chips');
    const several = DATA.studies.length > 1;
    chips.append(made('span', 'chip', [
      ...(several ? [DATA.studies[all.study[i]].name] : []),
      all.run[i], `seed ${all.seed[i]}`, all.phase[i]].join(' · ')));
    for (const name of numbers) {
      if (all.numbers[name][i] === null) continue;
      const chip = made('span', 'chip', `${all.names[name]} `);
      chip.append(made('b', '', String(
        Number(all.numbers[name][i].toPrecision(4)))));
      chips.append(chip);
    }
    box.append(chips);
    for (const [name, text] of Object.entries(all.texts)) {
      if (text[i] === null) continue;
      const line = made('p', name === 'response' ? '' : 'asked');
      line.append(made('span', 'who', name), ' ');
      marked(line, text[i], name === 'reference' ? [] : words);
      box.append(line);
    }
    return box;
  }

  function extend(words) {
    const next = found.slice(shown, shown + PAGE);
    list.append(...next.map((i) => card(i, words)));
    shown += next.length;
    more.hidden = shown >= found.length;
  }

  let words = [];
  function show() {
    const start = performance.now();
    [found, words] = filter();
    shown = 0;
    list.replaceChildren();
    extend(words);
    const of = all.total > count ?
      `${count.toLocaleString('en')} on this page, ` +
      `${all.total.toLocaleString('en')} in all` :
      `${count.toLocaleString('en')}`;
    at('count').textContent = `${found.length.toLocaleString('en')} of ${of}`;
    list.dataset.milliseconds = performance.now() - start;
  }
  more.addEventListener('click', () => extend(words));
  const form = at('controls');
  form.addEventListener('input', show);
  form.addEventListener('submit', (event) => event.preventDefault());
  show();
})();
