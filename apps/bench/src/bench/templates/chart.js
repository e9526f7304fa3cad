// A line chart of a few lines: {title, unit, lines: [{name, x, y, dashed}], log}. Gaps where y is null. SVG in the page's own colours.
const SVG = "http://www.w3.org/2000/svg";
const COLOURS = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00"];
function shape(name, attributes, text) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}
function short(v) {
  if (v === 0) return "0";
  const size = Math.abs(v);
  return size >= 1e5 || size < 1e-3 ? v.toExponential(1) : String(+v.toPrecision(3));
}
function chart({ title, unit = "", across = "frame", lines, log = false }, wide = 300, high = 150) {
  const left = 54, right = 8, top = 10, bottom = 26;
  const figure = document.createElement("figure");
  const svg = shape("svg", { viewBox: `0 0 ${wide} ${high}`, role: "img" });
  const points = lines.flatMap(l => l.x.map((x, i) => [x, l.y[i]])).filter(p => p[1] !== null && Number.isFinite(p[1]));
  const usesLog = log && points.length > 0 && points.every(p => p[1] > 0);
  const scale = usesLog ? Math.log10 : v => v;
  const xs = points.map(p => p[0]), ys = points.map(p => scale(p[1]));
  let [x0, x1, y0, y1] = [Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)];
  if (!points.length) [x0, x1, y0, y1] = [0, 1, 0, 1];
  if (x1 === x0) x1 = x0 + 1;
  const pad = usesLog ? 0.05 : Math.max((y1 - y0) * 0.12, Math.abs(y1) * 0.02, 1e-9);
  y0 -= pad; y1 += pad;
  const X = x => left + (x - x0) / (x1 - x0) * (wide - left - right);
  const Y = y => high - bottom - (scale(y) - y0) / (y1 - y0) * (high - top - bottom);
  const value = y => usesLog ? 10 ** y : y;
  for (const part of [0.1, 0.5, 0.9]) {
    const y = value(y0 + part * (y1 - y0));
    svg.append(shape("line", { x1: left, x2: wide - right, y1: Y(y), y2: Y(y), stroke: "currentColor", opacity: 0.13 }));
    svg.append(shape("text", { x: left - 5, y: Y(y) + 3.5, "text-anchor": "end", "font-size": 10, fill: "currentColor", opacity: 0.75 }, short(y)));
  }
  for (const [x, anchor] of [[x0, "start"], [x1, "end"]])
    svg.append(shape("text", { x: X(x), y: high - 10, "text-anchor": anchor, "font-size": 10, fill: "currentColor", opacity: 0.75 }, short(x)));
  svg.append(shape("text", { x: (left + wide - right) / 2, y: high - 10, "text-anchor": "middle", "font-size": 10, fill: "currentColor", opacity: 0.75 }, across));
  lines.forEach((line, n) => {
    let path = "", pen = false;
    line.x.forEach((x, i) => {
      const y = line.y[i];
      if (y === null || !Number.isFinite(y)) { pen = false; return; }
      path += `${pen ? "L" : "M"}${X(x).toFixed(1)},${Y(y).toFixed(1)}`;
      pen = true;
    });
    const drawn = { d: path || "M0,0", fill: "none", stroke: line.colour || COLOURS[n % 6], "stroke-width": 1.7, "stroke-linejoin": "round" };
    if (line.dashed) Object.assign(drawn, { "stroke-dasharray": "5 3", stroke: "currentColor", opacity: 0.6, "stroke-width": 1.3 });
    const made = shape("path", drawn);
    made.append(shape("title", {}, line.name));
    svg.append(made);
  });
  const ends = lines.map(l => { const y = l.y.filter(v => v !== null); return `${l.name}: ${y.length ? short(y[0]) + " to " + short(y.at(-1)) : "nothing"}`; });
  svg.setAttribute("aria-label", `${title}${unit ? " (" + unit + ")" : ""}. ${ends.join("; ")}`);
  const caption = document.createElement("figcaption");
  caption.textContent = `${title}${unit ? " (" + unit + ")" : ""}`;
  if (lines.length > 1) {
    caption.append(": ");
    lines.forEach((line, n) => {
      const dot = document.createElement("span");
      dot.className = "dot";
      dot.style.setProperty("--dot", line.dashed ? "currentColor" : line.colour || COLOURS[n % 6]);
      caption.append(dot, line.name + (n < lines.length - 1 ? " " : ""));
    });
  }
  figure.append(svg, caption);
  return figure;
}
function look(button) {
  const root = document.documentElement, order = ["auto", "light", "dark"];
  const show = theme => {
    if (theme === "auto") delete root.dataset.theme; else root.dataset.theme = theme;
    button.textContent = { auto: "◐ auto", light: "☀ light", dark: "☾ dark" }[theme];
    button.setAttribute("aria-label", `colours: ${theme}; change`);
  };
  let theme = "auto";
  try { theme = localStorage.getItem("bench-theme") || "auto"; } catch { /* storage is closed to file pages in some browsers */ }
  if (!order.includes(theme)) theme = "auto";
  show(theme);
  button.addEventListener("click", () => {
    theme = order[(order.indexOf(theme) + 1) % 3];
    show(theme);
    try { localStorage.setItem("bench-theme", theme); } catch { /* the choice lasts as long as the page */ }
  });
}
look(document.getElementById("theme"));
