// Draws the charts, and draws them again when the axis or the theme changes.
const report = JSON.parse(document.getElementById("report-data").textContent);
const controls = document.getElementById("controls");
const dark = matchMedia("(prefers-color-scheme: dark)");
const views = new Map();

// Tables travel by columns, with every text of a column once.
function unfold(table) {
  const columns = Object.entries(table).map(([name, values]) => [
    name,
    values.words ? values.at.map((i) => values.words[i]) : values,
  ]);
  const rows = columns.length ? columns[0][1].length : 0;
  return Array.from({ length: rows }, (_, i) =>
    Object.fromEntries(columns.map(([name, values]) => [name, values[i]])),
  );
}
for (const chart of Object.values(report.charts)) {
  if (!chart.spec) continue;
  chart.spec.datasets ??= {};
  for (const [name, table] of Object.entries(chart.data))
    chart.spec.datasets[name] = unfold(table);
  delete chart.data;
}

function chosen() {
  const form = new FormData(controls);
  return report.axes[form.get("clock")][form.get("scale")];
}

// The specification with the chosen clock as the x axis of every layer.
function withAxis({ datasets, ...spec }, axis) {
  const copy = structuredClone(spec);
  for (const layer of copy.layer ?? [copy]) {
    const { x, x2 } = layer.encoding ?? {};
    if (!x?.field) continue;
    x.field = axis.field + (x.field.endsWith("_from") ? "_from" : "");
    x.scale = axis.scale;
    x.axis = axis.axis;
    if (x2) x2.field = axis.field;
  }
  return copy;
}

// Vega-Lite 6 forgets that the cells of a nearest-point selection hold their point in `datum`
// when a tooltip field is text, and shows "undefined".
function patchTooltips(vegaSpec) {
  for (const mark of vegaSpec.marks ?? []) {
    const tooltip = mark.encode?.update?.tooltip;
    if (mark.name?.endsWith("voronoi") && tooltip?.signal)
      tooltip.signal = tooltip.signal.replace(/(?<!datum\.)datum\[/g, "datum.datum[");
    patchTooltips(mark);
  }
  return vegaSpec;
}

// Names of series that are hidden: in all charts against a clock, and in one chart.
const hidden = new Map([["", new Set()]]);

function visible(key) {
  const { spec, series, clock } = report.charts[key];
  const off = [...(hidden.get(key) ?? []), ...(clock ? hidden.get("") : [])];
  if (!off.length) return spec.datasets;
  const seen = (rows) => rows.filter((row) => !off.includes(row[series]));
  return Object.fromEntries(Object.entries(spec.datasets).map(([name, rows]) => [name, seen(rows)]));
}

async function draw(key) {
  const plot = document.querySelector(`#${key} .plot`);
  const axis = chosen();
  try {
    const { spec, clock } = report.charts[key];
    const whole = { ...(clock ? withAxis(spec, axis) : spec) };
    whole.datasets = visible(key);
    if (!whole.datasets["rows-0"].length && spec.datasets["rows-0"].length) {
      plot.textContent = "All that it shows is hidden.";
      return;
    }
    const result = await vegaEmbed(plot, whole, {
      actions: false,
      renderer: "svg",
      patch: patchTooltips,
      config: report.themes[dark.matches ? "dark" : "light"][clock ? "clock" : "finding"],
      tooltip: { theme: "custom" },
    });
    views.get(key)?.finalize();
    views.set(key, result);
  } catch (error) {
    plot.textContent = `This chart could not be drawn: ${error.message}`;
    console.error(error);
  }
}

// Draws all charts, those nearest to the window first; a newer pass ends an older one.
let latest = 0;
async function redraw() {
  const pass = ++latest;
  const middle = innerHeight / 2;
  const distance = (key) => {
    const box = document.getElementById(key).getBoundingClientRect();
    return Math.abs((box.top + box.bottom) / 2 - middle);
  };
  const drawn = Object.keys(report.charts).filter((key) => report.charts[key].spec);
  const keys = drawn.map((key) => [distance(key), key]);
  for (const [, key] of keys.sort(([a], [b]) => a - b)) {
    if (pass !== latest) return;
    await draw(key);
    await new Promise((resolve) => setTimeout(resolve)); // the page stays responsive
  }
}

// A fading edge and a hint say that there is more to scroll to.
for (const box of document.querySelectorAll(".sideways, .scroll")) {
  const look = () =>
    box.classList.toggle("more", box.scrollLeft + box.clientWidth < box.scrollWidth - 2);
  box.addEventListener("scroll", look);
  new ResizeObserver(look).observe(box);
}

redraw();
controls.addEventListener("change", redraw);
controls.addEventListener("submit", (event) => event.preventDefault());
dark.addEventListener("change", redraw);

function download(name, href) {
  const link = document.createElement("a");
  link.download = name;
  link.href = href;
  link.click();
}

function csv(rows) {
  const columns = [...new Set(rows.flatMap(Object.keys))];
  const quote = (value) => {
    let text = value === null || value === undefined ? "" : String(value);
    // A spreadsheet must not run a name as a formula.
    if (typeof value === "string" && /^[=+\-@\t\r]/.test(text)) text = `'${text}`;
    return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  const lines = [columns, ...rows.map((row) => columns.map((column) => row[column]))];
  return lines.map((line) => line.map(quote).join(",")).join("\n") + "\n";
}

function downloadCsv(name, rows) {
  const href = URL.createObjectURL(new Blob([csv(rows)], { type: "text/csv" }));
  download(`${name}.csv`, href);
  setTimeout(() => URL.revokeObjectURL(href), 10_000);
}

const fileName = (name) => name.toLowerCase().replace(/[^a-z0-9]+/g, "-").replace(/^-|-$/g, "");

document.addEventListener("click", async ({ target }) => {
  const button = target.closest("button");
  const { csv: table, png, all, toggle } = button?.dataset ?? {};
  if (toggle !== undefined) {
    const key = button.closest("figure")?.id ?? "";
    const shown = button.getAttribute("aria-pressed") === "false";
    button.setAttribute("aria-pressed", shown);
    if (!hidden.has(key)) hidden.set(key, new Set());
    hidden.get(key)[shown ? "delete" : "add"](toggle);
    await (key ? draw(key) : redraw());
  } else if (table) {
    const { name, spec, table: numbers } = report.charts[table];
    downloadCsv(fileName(name), numbers ? unfold(numbers) : spec.datasets[spec.data.name]);
  } else if (png) {
    const href = await views.get(png).view.toImageURL("png", 2);
    download(`${fileName(report.charts[png].name)}.png`, href);
  } else if (all !== undefined) downloadCsv("records", unfold(report.records));
});
