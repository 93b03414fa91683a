"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const TRENDS = ["unclassified", "stagnated", "upward", "downward"];
const MEANING = ["no trend", "learned before", "forgotten", "still learned"];
const state = { document: 0, token: -1, runs: [], faded: new Set() };

async function unpack(text, Kind = Uint8Array) {
  const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Kind(await new Response(stream).arrayBuffer());
}

/* Token i of the page: characters [start[i], start[i + 1]) of its document. */
let first = [0], start, documentOf;

async function load() {
  const lengths = await unpack(data.lengths, Uint16Array);
  for (const size of data.sizes) first.push(first.at(-1) + size);
  documentOf = new Uint16Array(lengths.length);
  start = new Uint32Array(lengths.length + 1);
  data.sizes.forEach((size, d) => {
    let at = 0;
    for (let i = first[d]; i < first[d + 1]; i++) {
      documentOf[i] = d;
      start[i] = at;
      at += lengths[i];
    }
  });
  data.lengths = lengths;
  const n = lengths.length;
  for (const run of data.runs) {
    const q = await unpack(run.losses);
    for (let i = n; i < q.length; i++) q[i] += q[i - n];
    run.q = q;
    run.n = n;
    run.classes = await unpack(run.classes);
  }
}

const loss = (run, row, i) => Math.exp(run.q[row * run.n + i] / data.levels) - 1;
const token = (i) => data.documents[documentOf[i]].text.substr(start[i], data.lengths[i]);
const trend = (run, i) => run.classes[(2 * +$("after").value + +$("rule").value) * run.n + i];
const row = (run, id) => {
  const goal = (+$(id).value / 100) * run.x.at(-1);
  return run.x.reduce((best, x, k) => (Math.abs(x - goal) < Math.abs(run.x[best] - goal) ? k : best), 0);
};
const bits = (nats) => nats / Math.LN2;
const signed = (value, digits = 3) => (value >= 0 ? "+" : "−") + Math.abs(value).toFixed(digits);
const visible = (text) => text.replace(/\n/g, "⏎").replace(/\t/g, "⇥").replace(/^ $/, "·");

function element(tag, fields = {}, ...children) {
  const made = Object.assign(document.createElement(tag), fields);
  made.append(...children);
  return made;
}

function paint() {
  const mode = document.querySelector("[name=mode]:checked").value;
  $("controls").dataset.mode = mode;
  for (const id of ["from", "to"]) $(`${id}-label`).textContent = `${$(id).value} %`;
  for (const pane of document.querySelectorAll(".pane")) {
    const run = data.runs[+pane.dataset.run];
    const [a, b] = [row(run, "from"), row(run, "to")];
    pane.querySelector("small").textContent =
      mode === "change" ? `${run.size}, from ${run.seen[a]} to ${run.seen[b]}` : `${run.size}, ${run.seen.at(-1)}`;
    for (const span of pane.querySelectorAll("span[data-i]")) {
      const i = +span.dataset.i;
      if (mode === "trend") {
        const c = trend(run, i);
        span.className = `c${c}${state.faded.has(c) ? " faded" : ""}`;
        span.style.cssText = "";
      } else {
        const change = loss(run, b, i) - loss(run, a, i);
        const strength = Math.min(1, Math.abs(change) / 2);
        const c = strength < 0.1 ? 0 : change > 0 ? 2 : 3;
        span.className = state.faded.has(c) ? "faded" : "";
        span.style.cssText = c && !state.faded.has(c)
          ? `background:color-mix(in srgb,var(--c${c}) ${Math.round(8 + 62 * strength)}%,transparent);border-bottom:2px ${c === 2 ? "dotted" : "solid"} var(--c${c})`
          : "";
      }
      if (i === state.token) span.classList.add("now");
    }
  }
  legend(mode);
  inspect();
  changed();
}

function legend(mode) {
  const run = data.runs[state.runs[0]];
  const counts = [0, 0, 0, 0];
  const [a, b] = [row(run, "from"), row(run, "to")];
  for (let i = 0; i < run.n; i++) {
    const change = mode === "trend" ? 0 : loss(run, b, i) - loss(run, a, i);
    counts[mode === "trend" ? trend(run, i) : Math.abs(change) < 0.2 ? 0 : change > 0 ? 2 : 3]++;
  }
  const names = mode === "trend" ? TRENDS.map((name, c) => `${name}: ${MEANING[c]}`) : ["within 0.2 nats", "", "worse", "better"];
  $("filter").replaceChildren(
    ...[3, 2, 1, 0].filter((c) => names[c]).map((c) => {
      const swatch = element("i");
      swatch.style.cssText = c ? `background:color-mix(in srgb,var(--c${c}) 34%,transparent);border-bottom:2px ${c === 2 ? "dotted" : "solid"} var(--c${c})` : "border:1px solid var(--line)";
      const button = element("button", { type: "button" }, swatch, `${names[c]} ${((100 * counts[c]) / run.n).toFixed(1)} %`);
      button.setAttribute("aria-pressed", !state.faded.has(c));
      button.onclick = () => {
        state.faded.has(c) ? state.faded.delete(c) : state.faded.add(c);
        paint();
      };
      return element("li", {}, button);
    }),
    element("li", { className: "meta", textContent: `of all tokens, in ${run.name}` }),
  );
}

function passages() {
  $("document").value = state.document;
  const d = state.document;
  $("panes").replaceChildren(
    ...state.runs.map((r) => {
      const passage = element("div", { className: "passage", tabIndex: 0 });
      for (let i = first[d]; i < first[d + 1]; i++) {
        const span = element("span", { textContent: token(i) });
        span.dataset.i = i;
        passage.append(span);
      }
      passage.setAttribute("aria-label", `Document ${d + 1} in ${data.runs[r].name}`);
      const pane = element("div", { className: "pane" }, element("h3", {}, data.runs[r].name, " ", element("small")), passage);
      pane.dataset.run = r;
      return pane;
    }),
  );
  paint();
}

function choose(i, scroll = false) {
  if (i < 0 || i >= documentOf.length) return;
  state.token = i;
  if (documentOf[i] !== state.document) {
    state.document = documentOf[i];
    passages();
  }
  for (const span of document.querySelectorAll(".now")) span.classList.remove("now");
  for (const span of document.querySelectorAll(`[data-i="${i}"]`)) {
    span.classList.add("now");
    const box = span.parentElement;
    if (scroll) box.scrollTop = span.offsetTop - box.offsetTop - box.clientHeight / 3;
  }
  inspect();
}

function context(i, before = 12, after = 4) {
  const d = documentOf[i], text = data.documents[d].text;
  const from = start[Math.max(first[d], i - before)];
  const last = Math.min(first[d + 1] - 1, i + after);
  return [text.slice(from, start[i]), token(i), text.slice(start[i] + data.lengths[i], start[last] + data.lengths[last])];
}

function inspect() {
  const i = state.token;
  if (i < 0) return;
  const [before, itself, after] = context(i);
  const table = element("table", {}, ...data.runs.map((run, r) => {
    const swatch = element("i", { className: "swatch" });
    swatch.style.background = `var(--series-${r % 8})`;
    const [a, b] = [row(run, "from"), row(run, "to")];
    return element("tr", {},
      element("td", {}, swatch, run.name),
      element("td", { textContent: TRENDS[trend(run, i)] }),
      element("td", { textContent: `${loss(run, a, i).toFixed(2)} → ${loss(run, b, i).toFixed(2)} nats` }));
  }));
  $("inspector").replaceChildren(
    element("div", {}, element("p", { className: "context" }, visible(before), element("mark", { textContent: visible(itself) }), visible(after)), table),
    chart(i),
  );
}

function chart(i) {
  const W = 460, H = 130, L = 34, B = 20, NS = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(NS, "svg");
  svg.setAttribute("viewBox", `0 0 ${W} ${H}`);
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", "Loss of the token against training tokens");
  const add = (tag, fields, text) => {
    const made = document.createElementNS(NS, tag);
    for (const [k, v] of Object.entries(fields)) made.setAttribute(k, v);
    if (text) made.textContent = text;
    svg.append(made);
  };
  const xs = data.runs.flatMap((run) => run.x.filter((x) => x > 0));
  const [low, high] = [Math.log(Math.min(...xs)), Math.log(Math.max(...xs))];
  const most = Math.max(1, ...data.runs.flatMap((run) => run.x.map((_, k) => loss(run, k, i))));
  const X = (x) => L + ((W - L - 6) * (Math.log(x) - low)) / (high - low || 1);
  const Y = (y) => 6 + (H - B - 6) * (1 - y / most);
  for (const y of [0, most / 2, most]) {
    add("line", { x1: L, x2: W, y1: Y(y), y2: Y(y), stroke: "var(--grid)" });
    add("text", { x: L - 5, y: Y(y) + 4, "text-anchor": "end" }, y.toFixed(1));
  }
  const longest = data.runs.reduce((a, b) => (a.x.at(-1) > b.x.at(-1) ? a : b));
  const beginning = longest.x.findIndex((x) => x > 0);
  add("text", { x: L, y: H - 4 }, longest.seen[beginning]);
  add("text", { x: W - 4, y: H - 4, "text-anchor": "end" }, longest.seen.at(-1));
  add("text", { x: W / 2, y: H - 4, "text-anchor": "middle" }, "loss in nats");
  data.runs.forEach((run, r) => {
    const points = run.x.map((x, k) => [x, k]).filter(([x]) => x > 0).map(([x, k]) => `${X(x).toFixed(1)},${Y(loss(run, k, i)).toFixed(1)}`);
    add("polyline", { points: points.join(" "), fill: "none", stroke: `var(--series-${r % 8})`, "stroke-width": state.runs.includes(r) ? 2.4 : 1.2 });
    for (const k of [row(run, "from"), row(run, "to")])
      if (run.x[k] > 0) add("circle", { cx: X(run.x[k]), cy: Y(loss(run, k, i)), r: 3, fill: `var(--series-${r % 8})` });
  });
  return svg;
}

function pattern(i) {
  const text = token(i), d = documentOf[i];
  if (!text.trim()) return "whitespace";
  if (/\d/.test(text)) return "numbers";
  if (/[{}()[\]<>=_/\\|;@#$%^&*+~`]/.test(text)) return "code and symbols";
  if (!/[\p{L}]/u.test(text)) return "punctuation";
  const before = data.documents[d].text.slice(Math.max(0, start[i] - 3), start[i]);
  if (/^\p{L}/u.test(text) && /\p{L}$/u.test(before)) return "inside words";
  if (/^\s?\p{Lu}\p{Ll}/u.test(text) && before && !/[.!?"“]\s?$/.test(before)) return "names";
  return "beginnings of words";
}

let patterns;
const encoder = new TextEncoder();

function changed() {
  const run = data.runs[+$("of").value], [a, b] = [row(run, "from"), row(run, "to")];
  $("between").textContent = `from ${run.seen[a]} to ${run.seen[b]}`;
  patterns ??= Array.from(documentOf, (_, i) => pattern(i));
  data.bytes ??= data.documents.map((one) => encoder.encode(one.text).length);
  const all = data.bytes.reduce((x, y) => x + y, 0);
  const kinds = {
    "Token set": (i) => data.documents[documentOf[i]].set,
    Pattern: (i) => patterns[i],
    Document: (i) => `${documentOf[i] + 1}. ${data.documents[documentOf[i]].text.trim().slice(0, 40)}…`,
  };
  const gain = Float32Array.from(documentOf, (_, i) => bits(loss(run, a, i) - loss(run, b, i)));
  $("tables").replaceChildren(...Object.entries(kinds).map(([kind, of]) => {
    const groups = new Map();
    for (let i = 0; i < gain.length; i++) {
      const key = of(i);
      if (!groups.has(key)) groups.set(key, { gain: 0, tokens: 0, better: 0, worse: 0, documents: new Map(), best: [], worst: [] });
      const group = groups.get(key), d = documentOf[i];
      group.gain += gain[i];
      group.tokens++;
      group.better += gain[i] > 0;
      group.worse += gain[i] < 0;
      group.documents.set(d, (group.documents.get(d) ?? 0) + gain[i]);
      for (const [list, sign] of [[group.best, 1], [group.worst, -1]]) {
        if (list.length < 2 || sign * gain[i] > sign * gain[list.at(-1)]) {
          list.push(i);
          list.sort((x, y) => sign * (gain[y] - gain[x]));
          list.length = Math.min(list.length, 2);
        }
      }
    }
    const rows = [...groups].map(([key, group]) => {
      const mine = [...group.documents.keys()];
      const bytes = kind === "Pattern" ? all : mine.reduce((sum, d) => sum + data.bytes[d], 0);
      const mean = group.gain / bytes, m = mine.length;
      const variance = mine.reduce((sum, d) => sum + (group.documents.get(d) - mean * data.bytes[d]) ** 2, 0);
      return { key, group, mean, error: m > 1 && kind !== "Document" ? Math.sqrt((variance * m) / (m - 1)) / bytes : NaN };
    });
    rows.sort((x, y) => y.mean - x.mean);
    const shown = kind === "Document" && rows.length > 10 ? [...rows.slice(0, 5), ...rows.slice(-5)] : rows;
    const example = (i, worse) => {
      if (worse ? gain[i] >= 0 : gain[i] <= 0) return "";
      const [before, itself] = context(i, 6, 0);
      const button = element("button", { type: "button", className: `example${worse ? " worse" : ""}` },
        `…${visible(before).slice(-28)}`, element("b", { textContent: visible(itself) }), ` ${signed(gain[i], 1)} bits`);
      button.onclick = () => {
        choose(i, true);
        $("panes").scrollIntoView({ block: "start" });
      };
      return button;
    };
    return element("table", {},
      element("thead", {}, element("tr", {}, ...[kind, "Tokens", "Gain, bits per byte", "Better, worse", "Examples"].map((t, k) => element("th", { textContent: t, className: k && k < 4 ? "right" : "" })))),
      element("tbody", {}, ...shown.map(({ key, group, mean, error }) => element("tr", {},
        element("td", { textContent: key }),
        element("td", { className: "right", textContent: group.tokens.toLocaleString("en") }),
        element("td", { className: "right", textContent: signed(mean) + (error >= 0 ? ` ± ${error.toFixed(3)}` : "") }),
        element("td", { className: "right", textContent: `${Math.round((100 * group.better) / group.tokens)} %, ${Math.round((100 * group.worse) / group.tokens)} %` }),
        element("td", {}, ...group.best.map((i) => example(i, false)), ...group.worst.map((i) => example(i, true)))))));
  }));
}

function controls() {
  data.after.forEach((p, k) => $("after").append(element("option", { value: k, textContent: `${100 * p} %` })));
  data.documents.forEach((one, d) => $("document").append(element("option", { value: d, textContent: `${d + 1}. ${one.set}: ${one.text.trim().slice(0, 32)}…` })));
  state.runs = data.runs.length > 1 ? [0, data.runs.length - 1] : [0];
  data.runs.forEach((run, r) => {
    $("of").append(element("option", { value: r, textContent: run.name }));
    const box = element("input", { type: "checkbox", checked: state.runs.includes(r) });
    box.onchange = () => {
      const chosen = new Set(state.runs);
      box.checked ? chosen.add(r) : chosen.delete(r);
      if (!chosen.size) box.checked = true;
      else state.runs = [...chosen].sort((x, y) => x - y);
      passages();
    };
    $("runs").append(element("label", {}, box, run.name));
  });
  $("of").value = data.runs.length - 1;
  $("controls").oninput = $("of").onchange = paint;
  $("controls").onsubmit = (event) => event.preventDefault();
  const open = (d) => {
    state.document = Math.min(Math.max(d, 0), data.documents.length - 1);
    state.token = -1;
    passages();
  };
  $("document").onchange = (event) => open(+event.target.value);
  $("previous").onclick = () => open(state.document - 1);
  $("next").onclick = () => open(state.document + 1);
  for (const kind of ["mouseover", "click"]) {
    $("panes").addEventListener(kind, (event) => event.target.dataset.i && choose(+event.target.dataset.i));
  }
  document.addEventListener("keydown", (event) => {
    if (/INPUT|SELECT/.test(event.target.tagName) || event.ctrlKey || event.metaKey || event.altKey) return;
    const at = state.token < 0 ? first[state.document] - 1 : state.token;
    if (event.key === "ArrowRight") choose(at + 1, true);
    else if (event.key === "ArrowLeft") choose(at - 1, true);
    else if (event.key === "n") open(state.document + 1);
    else if (event.key === "p") open(state.document - 1);
    else return;
    event.preventDefault();
  });
}

load().then(() => {
  controls();
  passages();
});
