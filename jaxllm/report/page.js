// Draws the charts, and draws them again when the axis or the theme changes.
const report = JSON.parse(document.getElementById("report-data").textContent);
const controls = document.getElementById("controls");
const dark = matchMedia("(prefers-color-scheme: dark)");
const views = new Map();

function chosen() {
  const form = new FormData(controls);
  return report.axes[form.get("clock")][form.get("scale")];
}

// The specification with the chosen clock as the x axis of every layer.
function withAxis(spec, axis) {
  const copy = structuredClone(spec);
  for (const layer of copy.layer ?? [copy]) {
    const { x, x2 } = layer.encoding ?? {};
    if (!x?.field) continue;
    x.field = axis.field + (x.field.endsWith("_from") ? "_from" : "");
    x.scale = axis.scale;
    x.axis = { ...axis.axis, title: axis.title };
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

async function draw(key) {
  const plot = document.querySelector(`#${key} .plot`);
  const axis = chosen();
  try {
    const result = await vegaEmbed(plot, withAxis(report.charts[key].spec, axis), {
      actions: false,
      renderer: "svg",
      patch: patchTooltips,
      config: report.themes[dark.matches ? "dark" : "light"],
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
  const keys = Object.keys(report.charts).map((key) => [distance(key), key]);
  for (const [, key] of keys.sort(([a], [b]) => a - b)) {
    if (pass !== latest) return;
    await draw(key);
    await new Promise((resolve) => setTimeout(resolve)); // the page stays responsive
  }
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
    const text = value === null || value === undefined ? "" : String(value);
    return /[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
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
  const { csv: table, png, all } = target.dataset ?? {};
  if (table) {
    const { name, spec } = report.charts[table];
    downloadCsv(fileName(name), spec.data.values ?? spec.datasets[spec.data.name]);
  } else if (png) {
    const href = await views.get(png).view.toImageURL("png", 2);
    download(`${fileName(report.charts[png].name)}.png`, href);
  } else if (all !== undefined) downloadCsv("records", report.records);
});
