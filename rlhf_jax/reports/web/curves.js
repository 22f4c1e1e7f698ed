'use strict';
// What is drawn of runs and seeds, as numbers; `charts.js` draws it.
const DATA = JSON.parse(document.getElementById('data').textContent);

// The mean over seeds as far as all of them go, with Student's interval of
// 95 %, of two columns. A point counts where every seed has it.
function meanOf(seeds, x, y, quantiles) {
  const there = seeds.filter((seed) => seed.columns[x] && seed.columns[y]);
  const mean = {x: [], y: [], low: [], high: []};
  if (!there.length) return mean;
  const length = Math.min(...there.map((seed) => seed.columns[y].length));
  const average = (values) =>
    values.reduce((sum, value) => sum + value, 0) / values.length;
  for (let i = 0; i < length; i++) {
    const at = there.map((seed) => seed.columns[x][i]);
    const values = there.map((seed) => seed.columns[y][i]);
    if (at.includes(null) || values.includes(null)) continue;
    const n = values.length, centre = average(values);
    const variance = values.reduce(
      (sum, value) => sum + (value - centre) ** 2, 0) / Math.max(n - 1, 1);
    const half = n < 2 ? 0 : Math.sqrt(variance / n) *
      (quantiles[n - 2] ?? quantiles[quantiles.length - 1]);
    mean.x.push(average(at));
    mean.y.push(centre);
    mean.low.push(centre - half);
    mean.high.push(centre + half);
  }
  return mean;
}

const PALETTE = ['#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00',
                 '#56B4E9', '#000000'];
const DASHES = ['solid', 'dash', 'dot', 'dashdot'];

// Methods look alike in every figure of a study that stands alone.
const own = (colour) => DATA.lines.length === 1 ? colour : undefined;

// All lines of all studies, each with a name, a colour and a dash of its own.
const LINES = DATA.lines.flatMap((lines, i) => lines.map((line) => ({
  ...line, study: i,
  name: DATA.lines.length > 1 ?
    `${DATA.studies[i].name}: ${line.name}` : line.name,
}))).map((line, i) => ({
  ...line, colour: own(line.colour) ?? PALETTE[i % PALETTE.length],
  dash: DASHES[Math.floor(i / PALETTE.length) % DASHES.length],
}));

// A chart of one column over another, of all lines that have both.
function curveChart(x, y) {
  const series = [];
  for (const line of LINES) {
    const seeds = line.seeds.filter(
      (seed) => seed.columns[x] && seed.columns[y]);
    if (!seeds.length) continue;
    const mean = meanOf(seeds, x, y, DATA.quantiles);
    series.push({...line, ...mean, main: true, seeds: seeds.length});
    if (seeds.length > 1) {
      for (const seed of seeds) {
        series.push({
          name: `${line.name}, seed ${seed.seed}`, of: line.name,
          colour: line.colour, thin: true,
          x: seed.columns[x], y: seed.columns[y]});
      }
    }
  }
  const short = DATA.columns[y].split(',')[0];
  return {title: short, kind: 'curves', x: DATA.columns[x],
          y: DATA.columns[y], right: null, series};
}
