// Curves of a training that may still run: the log is asked for again every few seconds and drawn when it has grown.
const place = document.getElementById("charts"), state = document.getElementById("state");
let lines = -1, since = Date.now();
async function look_again() {
  try {
    const answer = await fetch(document.getElementById("main").dataset.log, { cache: "no-store" });
    if (!answer.ok) throw new Error(`the server answers ${answer.status}`);
    const log = await answer.json();
    if (log.lines !== lines) {
      lines = log.lines; since = Date.now();
      place.replaceChildren(...log.charts.map(drawn => chart(drawn, 300, 170)));
    }
    const quiet = Math.round((Date.now() - since) / 1000);
    state.textContent = log.last ? `stage ${log.last.stage}, step ${log.last.step}${quiet > 30 ? `; nothing new for ${quiet} s` : ""}` : "the log is empty so far";
  } catch (error) {
    state.textContent = `cannot read the log: ${error.message}; trying again`;
  }
  setTimeout(look_again, document.hidden ? 15000 : 2500);
}
look_again();
