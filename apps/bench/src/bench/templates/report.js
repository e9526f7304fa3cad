// Players whose videos stay in step, overlays, tables that sort, filters. Everything that came from data goes through textContent.
const DATA = JSON.parse(document.getElementById("data").textContent);
const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
let speed = 0.5, showPath = true, showMotion = false;

function bytes(base64) {
  const text = atob(base64), made = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) made[i] = text.charCodeAt(i);
  return made;
}

class Player {
  constructor(card) {
    this.card = card;
    this.panels = [...card.querySelectorAll(".panel")].map(node => ({
      node, video: node.querySelector("video"), canvas: node.querySelector("canvas"), data: DATA.videos[node.dataset.video],
    }));
    this.playing = false; this.held = still; this.near = false; this.url = [];
    this.lead = this.panels.reduce((a, b) => b.data.frames / b.data.fps > a.data.frames / a.data.fps ? b : a);
    this.button = card.querySelector(".play");
    this.slider = card.querySelector("input[type=range]");
    this.output = card.querySelector("output");
    this.slider.max = this.lead.data.frames - 1;
    this.button.addEventListener("click", () => { this.held = this.playing; this.playing ? this.pause() : this.play(); });
    card.querySelector(".back").addEventListener("click", () => this.step(-1));
    card.querySelector(".next").addEventListener("click", () => this.step(1));
    this.slider.addEventListener("input", () => { this.held = true; this.pause(); this.seek(+this.slider.value); });
    card.querySelector("details")?.addEventListener("toggle", event => { if (event.target.open) this.detail(); });
    this.show(0);
  }
  attach() {
    if (this.near) return;
    this.near = true;
    for (const panel of this.panels) {
      const url = URL.createObjectURL(new Blob([bytes(panel.data.mp4)], { type: "video/mp4" }));
      this.url.push(url);
      panel.video.src = url;
      panel.shown = +this.slider.value;
      this.follow(panel);
    }
    this.held ? this.seek(+this.slider.value) : this.play();
  }
  detach() {
    if (!this.near) return;
    this.pause();
    this.near = false;
    for (const panel of this.panels) { panel.video.removeAttribute("src"); panel.video.load(); }
    this.url.splice(0).forEach(url => URL.revokeObjectURL(url));
  }
  follow(panel) { // what is drawn over a video belongs to the frame that is on the screen, not to the clock
    if (!panel.video.requestVideoFrameCallback) return;
    panel.video.requestVideoFrameCallback((now, about) => {
      if (!this.near) return;
      panel.shown = Math.min(panel.data.frames - 1, Math.round(about.mediaTime * panel.data.fps));
      this.overlay(panel);
      this.follow(panel);
    });
  }
  async play() {
    if (!this.near || this.playing) return;
    this.playing = true;
    this.label();
    const frame = +this.slider.value;
    await this.start(frame >= this.lead.data.frames - 1 ? 0 : frame);
    requestAnimationFrame(() => this.tick());
  }
  async start(frame) { // all seek, and when the last one has, all play
    const time = (frame + 0.25) / this.lead.data.fps;
    this.starting = true;
    await Promise.all(this.panels.map(({ video, data }) => new Promise(done => {
      video.pause();
      video.playbackRate = speed;
      const seek = () => {
        video.addEventListener("seeked", done, { once: true });
        video.currentTime = Math.min(time, (data.frames - 0.5) / data.fps);
      };
      video.readyState >= 1 ? seek() : video.addEventListener("loadedmetadata", seek, { once: true });
      video.addEventListener("emptied", done, { once: true });
    })));
    this.starting = false;
    if (!this.playing) return;
    await Promise.allSettled(this.panels.map(({ video, data }) => time < (data.frames - 0.5) / data.fps ? video.play() : null));
  }
  pause() {
    this.playing = false;
    this.label();
    for (const panel of this.panels) panel.video.pause();
  }
  label() {
    this.button.textContent = this.playing ? "❚❚" : "▶";
    this.button.setAttribute("aria-label", this.playing ? "pause" : "play");
  }
  tick() {
    if (!this.playing) return;
    if (!this.starting) {
      const { video: lead, data: { frames, fps } } = this.lead;
      if (lead.ended || lead.currentTime >= (frames - 0.1) / fps) this.start(0);
      else for (const { video, data } of this.panels) {
        const wanted = Math.min(lead.currentTime, (data.frames - 0.5) / data.fps);
        if (video !== lead && !video.seeking && Math.abs(video.currentTime - wanted) > 1.2 / data.fps) video.currentTime = wanted;
      }
      this.show(Math.min(frames - 1, Math.floor(lead.currentTime * fps + 1e-3)));
    }
    requestAnimationFrame(() => this.tick());
  }
  step(by) {
    this.held = true;
    this.pause();
    this.seek(Math.min(this.lead.data.frames - 1, Math.max(0, +this.slider.value + by)));
  }
  seek(frame) {
    const time = (frame + 0.5) / this.lead.data.fps;
    for (const { video, data } of this.panels) video.currentTime = Math.min(time, (data.frames - 0.5) / data.fps);
    this.show(frame);
  }
  show(frame) {
    this.slider.value = frame;
    this.output.textContent = `frame ${frame + 1} / ${this.lead.data.frames}`;
    this.slider.setAttribute("aria-valuetext", `frame ${frame + 1} of ${this.lead.data.frames}`);
    for (const panel of this.panels) if (!panel.video.requestVideoFrameCallback) { panel.shown = frame; this.overlay(panel); }
  }
  draw() { this.panels.forEach(panel => this.overlay(panel)); }
  overlay({ canvas, data, shown = 0 }) {
    const box = canvas.getBoundingClientRect(), dense = devicePixelRatio || 1;
    if (!box.width) return;
    canvas.width = Math.round(box.width * dense); canvas.height = Math.round(box.height * dense);
    const pen = canvas.getContext("2d"), W = canvas.width, H = canvas.height;
    pen.lineCap = pen.lineJoin = "round";
    if (showPath) for (const track of data.tracks || []) paths(pen, track, shown, W, H, dense);
    if (showMotion && data.motion.length) arrows(pen, data.motion, Math.min(shown, data.motion.length - 1), W, H, dense);
  }
  detail() {
    const place = this.card.querySelector(".charts"), details = this.card.querySelector("details");
    if (!place || !details.open) return;
    place.replaceChildren();
    const named = new Map(), shown = this.panels.filter(({ node }) => !node.hidden);
    for (const { node, data } of shown) for (const s of data.series || []) {
      if (!named.has(s.name)) named.set(s.name, { title: `${s.name}, which ${s.words}`, unit: s.unit, lines: [], law: s });
      named.get(s.name).lines.push({ name: node.dataset.system, colour: node.dataset.colour, x: s.values.map((_, i) => i + 1), y: s.values });
    }
    for (const chosen of named.values()) {
      const real = this.panels.find(p => p.node.dataset.role === "real" && (p.data.series || []).some(s => s.name === chosen.law.name));
      const law = real ? real.data.series.find(s => s.name === chosen.law.name) : chosen.law;
      chosen.lines.push({ name: law.expected || (real ? "law, for the real clip" : "law"), dashed: true, x: law.expects.map((_, i) => i + 1), y: law.expects });
      place.append(chart(chosen));
    }
    for (const { node, data } of shown) for (const track of data.tracks || []) if (track.law) {
      const off = track.points.map((p, i) => p && Math.hypot(p[0] - track.law[i][0], p[1] - track.law[i][1]));
      const known = named.get("off the law") || { title: "distance from the fitted path", unit: "widths of the picture", lines: [] };
      known.lines.push({ name: `${node.dataset.system}${(data.tracks.length > 1) ? ", " + track.name : ""}`, colour: node.dataset.colour, x: off.map((_, i) => i + 1), y: off });
      named.set("off the law", known);
    }
    if (named.has("off the law")) place.append(chart(named.get("off the law")));
  }
}

function paths(pen, track, frame, W, H, dense) {
  const line = (points, last) => {
    pen.beginPath();
    let on = false;
    points.forEach((p, i) => {
      if (!p || i > last) { on = false; return; }
      on ? pen.lineTo(p[0] * W, p[1] * H) : pen.moveTo(p[0] * W, p[1] * H);
      on = true;
    });
  };
  if (track.law) {
    line(track.law, Infinity);
    pen.setLineDash([4 * dense, 3 * dense]);
    pen.lineWidth = 3 * dense; pen.strokeStyle = "rgb(0 0 0 / .55)"; pen.stroke();
    pen.lineWidth = 1.3 * dense; pen.strokeStyle = "#ffffff"; pen.stroke();
    pen.setLineDash([]);
  }
  line(track.points, frame);
  pen.lineWidth = 4 * dense; pen.strokeStyle = "rgb(0 0 0 / .55)"; pen.stroke();
  pen.lineWidth = 2 * dense; pen.strokeStyle = "#56B4E9"; pen.stroke();
  const now = track.points[Math.min(frame, track.points.length - 1)];
  if (now) {
    pen.beginPath(); pen.arc(now[0] * W, now[1] * H, 3.4 * dense, 0, 7);
    pen.fillStyle = "#56B4E9"; pen.fill(); pen.lineWidth = 1.2 * dense; pen.strokeStyle = "#000"; pen.stroke();
  }
}

function arrows(pen, motion, frame, W, H, dense) {
  const grid = motion[frame];
  if (!grid) return;
  const rows = grid.length, columns = grid[0].length, longer = 3;
  for (let j = 0; j < rows; j++) for (let i = 0; i < columns; i++) {
    const [u, v] = grid[j][i];
    if (!u && !v) continue;
    const x = (i + 0.5) / columns * W, y = (j + 0.5) / rows * H, dx = u / 1000 * W * longer, dy = v / 1000 * W * longer;
    for (const [width, colour] of [[3.4 * dense, "rgb(0 0 0 / .6)"], [1.5 * dense, "#F0E442"]]) {
      pen.beginPath(); pen.moveTo(x, y); pen.lineTo(x + dx, y + dy);
      const turn = Math.atan2(dy, dx), head = Math.min(5 * dense, Math.hypot(dx, dy) * 0.5);
      for (const side of [2.6, -2.6]) { pen.moveTo(x + dx, y + dy); pen.lineTo(x + dx + head * Math.cos(turn + side), y + dy + head * Math.sin(turn + side)); }
      pen.lineWidth = width; pen.strokeStyle = colour; pen.stroke();
    }
  }
}

const players = [...document.querySelectorAll(".card")].filter(card => card.querySelector("video")).map(card => new Player(card));
const seen = new IntersectionObserver(entries => {
  for (const entry of entries) { const player = players.find(p => p.card === entry.target); entry.isIntersecting ? player.attach() : player.detach(); }
}, { rootMargin: "200px" });
players.forEach(player => seen.observe(player.card));
addEventListener("resize", () => players.forEach(player => player.draw()));

const all = document.getElementById("all");
all?.addEventListener("click", () => {
  const stop = all.textContent === "pause all";
  all.textContent = stop ? "play all" : "pause all";
  players.forEach(player => { player.held = stop; stop ? player.pause() : player.play(); });
});
if (all && still) all.textContent = "play all";
document.getElementById("speed")?.addEventListener("change", event => {
  speed = +event.target.value;
  players.forEach(player => player.panels.forEach(panel => { panel.video.playbackRate = speed; }));
});
for (const [id, set] of [["path", on => { showPath = on; }], ["motion", on => { showMotion = on; }]])
  document.getElementById(id)?.addEventListener("change", event => { set(event.target.checked); players.forEach(player => player.draw()); });

function filter() {
  const group = document.getElementById("group")?.value ?? "";
  const off = new Set([...document.querySelectorAll("[data-show]")].filter(box => !box.checked).map(box => box.dataset.show));
  document.querySelectorAll(".card").forEach(card => { card.hidden = group !== "" && card.dataset.group !== group; });
  document.querySelectorAll(".panel").forEach(panel => { panel.hidden = off.has(panel.dataset.system); });
  players.forEach(player => { player.draw(); player.detail(); });
}
document.getElementById("group")?.addEventListener("change", filter);
document.querySelectorAll("[data-show]").forEach(box => box.addEventListener("change", filter));
filter();

document.querySelectorAll("table.sorts").forEach(table => {
  const body = table.tBodies[0], first = [...body.rows];
  table.querySelectorAll("thead th").forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const was = head.getAttribute("aria-sort"), next = was === "descending" ? "ascending" : was === "ascending" ? null : "descending";
      table.querySelectorAll("thead th").forEach(other => other.removeAttribute("aria-sort"));
      if (next) head.setAttribute("aria-sort", next);
      const key = row => { const cell = row.cells[column]; return cell.dataset.v === undefined ? cell.textContent.trim() : cell.dataset.v === "" ? NaN : +cell.dataset.v; };
      const sign = next === "ascending" ? 1 : -1;
      const sorted = !next ? first : [...first].sort((a, b) => {
        if (a.classList.contains("total") !== b.classList.contains("total")) return a.classList.contains("total") ? 1 : -1;
        const [x, y] = [key(a), key(b)];
        if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y);
        return sign * (typeof x === "number" ? x - y : String(x).localeCompare(String(y)));
      });
      body.append(...sorted);
    });
  });
});
for (const place of document.querySelectorAll("[data-curves]"))
  for (const drawn of DATA.curves[place.dataset.curves]) place.append(chart(drawn, 300, 170));
