'use strict';
// Hands charts to the plotting library, in the colours of the page.
const drawn = [];  // {node, chart, hidden}, of all charts on the page
// Of paper: what the page looks like is known before its style is.
const PAPER = {'--text': '#000', '--soft': '#444', '--line': '#bbb',
               width: 345};
let printing = false;

const css = (name) => printing ? PAPER[name] : getComputedStyle(
  document.documentElement).getPropertyValue(name).trim();
// Names are text: the library would read tags in them.
const plain = (text) => String(text ?? '').replace(/&/g, '&amp;')
  .replace(/</g, '&lt;').replace(/>/g, '&gt;');
// Black is the colour of text, which is light in the dark.
const inked = (colour) => colour === '#000000' ? css('--text') : colour;
function faint(colour, share) {
  const hex = inked(colour).replace('#', '');
  const full = hex.length === 3 ? [...hex].map((c) => c + c).join('') : hex;
  const part = (i) => parseInt(full.slice(2 * i, 2 * i + 2), 16);
  return `rgba(${part(0)},${part(1)},${part(2)},${share})`;
}

const shorten = (name) => name.length > 44 ? `${name.slice(0, 43)}…` : name;

function lineTraces(one) {
  const name = plain(shorten(one.name));
  const axes = one.right ? {yaxis: 'y2'} : {};
  const base = {
    ...axes, type: 'scatter', x: one.x, y: one.y, name,
    mode: one.x.length < 2 ? 'markers' : 'lines',
    line: {color: inked(one.colour), width: one.thin ? .8 : one.right ? 1.3 : 2.4,
           dash: one.right ? 'dash' : one.dash || 'solid'},
    marker: {color: inked(one.colour)}, opacity: one.thin ? .45 : 1,
    hovertemplate: `${plain(one.name)}${one.right ? ', proxy' : ''}` +
      '<br>%{y:.4g} at %{x:.4g}<extra></extra>'};
  if (one.bars) {
    return [{...base, mode: 'lines+markers', marker: {
      ...base.marker, symbol: one.right ? 'circle-open' : 'circle'}, error_y: {
      type: 'data', array: one.y.map((y, i) => one.high[i] - y),
      color: inked(one.colour), thickness: 1}}];
  }
  if (one.thin || !one.low) return [base];
  const there = one.x.map((_, i) => i).filter(
    (i) => one.x[i] !== null && one.low[i] !== null);
  const back = [...there].reverse();
  const band = {
    ...axes, type: 'scatter', x: [...there, ...back].map((i) => one.x[i]),
    y: [...there.map((i) => one.high[i]), ...back.map((i) => one.low[i])],
    fill: 'toself', mode: 'lines', line: {width: 0}, hoverinfo: 'skip',
    fillcolor: faint(one.colour, one.right ? .08 : .15)};
  return [band, base];
}

const TRACES = {
  curves: (chart) => chart.series.flatMap(lineTraces),
  points: (chart) => {
    const at = [...new Set(chart.series.flatMap((one) => one.x ?? []))]
      .sort((a, b) => a - b);
    return chart.series.flatMap((one) => one.across === undefined ?
      lineTraces(one) :
      lineTraces({...one, x: at, y: at.map(() => one.across), dash: 'dot'}));
  },
  bars: (chart) => chart.series.map((one) => ({
    type: 'bar', orientation: 'h', name: plain(one.name), x: one.x,
    y: one.y.map((text) => plain(shorten(text))),
    marker: {color: one.colour.map(inked)},
    error_x: {type: 'data', array: one.error, color: css('--soft'),
              thickness: 1.2},
    hovertemplate: '%{y}<br>%{x:.4g} ± %{error_x.array:.3g}<extra></extra>'})),
  violins: (chart) => chart.series.map((one) => ({
    type: 'violin', orientation: 'h', x: one.x, name: plain(one.name),
    line: {color: inked(one.colour)}, box: {visible: true},
    meanline: {visible: true}, points: false, spanmode: 'hard'})),
  discs: (chart) => chart.series.map((one) => ({
    type: 'scatter', mode: 'markers', x: one.x, name: plain(one.name),
    y: one.x.map(() => plain(one.name)), customdata: one.share,
    marker: {color: inked(one.colour), opacity: .6,
             size: one.share.map((share) => 26 * Math.sqrt(share))},
    hovertemplate: '%{customdata:.1%} at %{x}<extra></extra>'})),
  histograms: (chart) => chart.series.map((one) => ({
    type: 'histogram', x: one.x, name: plain(one.name), opacity: .6,
    bingroup: 1, nbinsx: 30, marker: {color: inked(one.colour)},
    hovertemplate: `${plain(one.name)}: %{y} at %{x}<extra></extra>`})),
};

function layoutOf(chart, width) {
  const text = css('--text'), line = css('--line');
  const axis = {gridcolor: line, zerolinecolor: line, linecolor: line,
                automargin: true};
  const title = (words) => ({text: plain(words), font: {size: 12}});
  const lying = ['bars', 'violins', 'discs'].includes(chart.kind);
  const names = lying ? new Set(chart.series.flatMap(
    (one) => chart.kind === 'bars' ? one.y : [one.name])).size : 0;
  const layout = {
    font: {color: text, size: 12, family: 'system-ui, sans-serif'},
    paper_bgcolor: 'rgba(0,0,0,0)', plot_bgcolor: 'rgba(0,0,0,0)',
    margin: {l: 54, r: chart.right ? 62 : 16, t: 30, b: 44},
    height: Math.max(280, 100 + 30 * names),
    ...(printing ? {width: PAPER.width, height: 230} : {}),
    modebar: {bgcolor: 'rgba(0,0,0,0)', color: css('--line'),
              activecolor: css('--soft')},
    hovermode: 'closest', hoverlabel: {namelength: -1},
    xaxis: {...axis, title: title(chart.x)},
    yaxis: {...axis, title: title(chart.y)},
    showlegend: false,
    barmode: chart.kind === 'histograms' ? 'overlay' : 'group',
    dragmode: width > 520 ? 'zoom' : false,
  };
  if (chart.kind === 'points') layout.xaxis.type = 'category';
  if (lying) layout.yaxis.autorange = 'reversed';
  if (chart.right) {
    layout.yaxis2 = {...axis, title: title(chart.right), overlaying: 'y',
                     side: 'right', showgrid: false, tickmode: 'auto'};
  }
  if (chart.chance != null) {  // of shares
    layout.xaxis.range = [0, 1];
    layout.shapes = [{type: 'line', x0: chart.chance, x1: chart.chance,
                      yref: 'paper', y0: 0, y1: 1,
                      line: {color: css('--soft'), dash: 'dot', width: 1.2}}];
  }
  return layout;
}

// Only these buttons: by itself the library has one that uploads the chart.
const OPTIONS = {
  responsive: true, displaylogo: false, plotlyServerURL: '',
  modeBarButtons: [['toImage', 'zoom2d', 'pan2d', 'zoomIn2d', 'zoomOut2d',
                    'resetScale2d']],
  toImageButtonOptions: {format: 'png', scale: 3}};

function plot(one) {
  const chart = {...one.chart, series: one.chart.series.filter(
    (series) => !one.hidden.has(series.of ?? series.name))};
  return Plotly.react(one.node, TRACES[chart.kind](chart),
                      layoutOf(chart, one.node.clientWidth), OPTIONS);
}

// One legend for all charts of a place; a name hides its lines in all of them.
function legend(where) {
  const charts = drawn.filter((one) => where.contains(one.node));
  const names = new Map(charts.flatMap((one) => one.chart.series)
    .filter((one) => one.name && !one.thin && !one.right &&
            typeof one.colour === 'string').map((one) => [one.name, one]));
  const lying = charts.some(
    (one) => ['violins', 'discs'].includes(one.chart.kind));
  if (names.size < 2 || lying) return;
  const box = document.createElement('div'), hidden = new Set();
  box.className = 'legend';
  for (const [name, one] of names) {
    const button = document.createElement('button');
    const swatch = document.createElement('i');
    button.type = 'button';
    button.setAttribute('aria-pressed', 'true');
    swatch.style.borderTopColor = one.colour === '#000000' ?
      'var(--text)' : one.colour;
    swatch.style.borderTopStyle =
      {dash: 'dashed', dashdot: 'dashed', dot: 'dotted'}[one.dash] ?? 'solid';
    button.append(swatch, name);
    button.addEventListener('click', () => {
      if (!hidden.delete(name)) hidden.add(name);
      button.setAttribute('aria-pressed', String(!hidden.has(name)));
      charts.forEach(plot);
    });
    box.append(button);
  }
  for (const one of charts) one.hidden = hidden;
  where.prepend(box);
}

// Charts in their place, and their legend, before one is drawn: how wide they
// are depends on all of these.
function show(where, charts) {
  const ones = charts.map((chart) => place(where, chart));
  legend(where);
  ones.forEach(plot);
}

// A box for a chart; `plot` fills it.
function place(where, chart) {
  const box = document.createElement('div');
  box.className = 'chart';
  if (chart.title) {
    const title = document.createElement('h4');
    title.textContent = chart.title;
    box.append(title);
  }
  const node = document.createElement('div');
  node.className = 'plot';
  box.append(node);
  if (chart.note) {
    const note = document.createElement('p');
    note.className = 'errors';
    note.textContent = chart.note;
    box.append(note);
  }
  where.append(box);
  const one = {node, chart, hidden: new Set()};
  drawn.push(one);
  return one;
}

function clear(where) {
  for (let i = drawn.length - 1; i >= 0; i--) {
    if (where.contains(drawn[i].node)) {
      Plotly.purge(drawn[i].node);
      drawn.splice(i, 1);
    }
  }
  where.replaceChildren();
}

function option(select, value, text) {
  const node = document.createElement('option');
  node.value = value;
  node.textContent = text;
  select.append(node);
}

const OVER = ['sqrt_kl', 'kl_k1', 'kl', 'step', 'updates', 'samples', 'epoch',
              'n'];
const FIRST = ['gold', 'proxy', 'rule', 'kl_k1', 'ensemble_variance',
               'perplexity', 'loss', 'accuracy', 'length'];

function showCurves() {
  const where = document.getElementById('curve-charts');
  if (!where) return;
  const [x, y] = ['curve-x', 'curve-y'].map(
    (name) => document.getElementById(name));
  const names = Object.keys(DATA.columns);
  for (const name of OVER.filter((name) => names.includes(name))) {
    option(x, name, DATA.columns[name]);
  }
  option(y, '', 'none');
  for (const name of names) option(y, name, DATA.columns[name]);
  const redraw = () => {
    clear(where);
    const shown = FIRST.filter((name) => names.includes(name)).slice(0, 5);
    if (y.value && !shown.includes(y.value)) shown.unshift(y.value);
    // KL over itself says nothing: over training.
    const over = (name) => name.startsWith('kl') && x.value.includes('kl') &&
      names.includes('step') ? 'step' : x.value;
    show(where, shown.map((name) => curveChart(over(name), name)));
  };
  x.addEventListener('change', redraw);
  y.addEventListener('change', redraw);
  redraw();
}

function showSpread() {
  const where = document.getElementById('spread-charts');
  if (!where) return;
  const select = document.getElementById('spread-run');
  const keyOf = (one) => `${one.study}/${one.run}`;
  const several = DATA.studies.length > 1;
  const keys = new Map(DATA.samples.spread.map((one) => [keyOf(one),
    several ? `${DATA.studies[one.study].name}: ${one.run}` : one.run]));
  for (const [key, text] of keys) option(select, key, text);
  const redraw = () => {
    clear(where);
    show(where, DATA.samples.spread.filter(
      (one) => keyOf(one) === select.value).map((one) => ({
      title: one.name.split(',')[0], kind: 'histograms', x: one.name,
      y: 'responses', right: null,
      series: [['before training', '#E69F00', one.before],
               ['after training', '#0072B2', one.after]]
        .filter(([, , x]) => x.length)
        .map(([name, colour, x]) => ({name, colour, x}))})));
  };
  select.addEventListener('change', redraw);
  redraw();
}

const redrawAll = () => Promise.all(drawn.map(plot));
matchMedia('(prefers-color-scheme: dark)')
  .addEventListener('change', redrawAll);
for (const [event, now] of [['beforeprint', true], ['afterprint', false]]) {
  window.addEventListener(event, () => {
    printing = now;
    redrawAll();
  });
}

for (const where of document.querySelectorAll('[data-figure]')) {
  show(where, DATA.studies[where.dataset.figure].charts);
}
showCurves();
showSpread();
document.body.dataset.charts = drawn.length;
