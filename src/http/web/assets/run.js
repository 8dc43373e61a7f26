// The live log of a run. Text from agents is only ever set as text, never as markup.
"use strict";
(function () {
  const MAX_LINES = 5000; // Older lines leave the page; they stay in the database.
  const main = document.querySelector("main[data-events]");
  const log = document.getElementById("log");
  if (!main || !log || !window.EventSource) return;

  const KINDS = ["text", "tool", "tool_end", "out", "err", "note", "result", "error"];
  const MARKS = ["done", "now", "stopped", "todo"];
  const connection = document.getElementById("connection");

  function setText(id, text) {
    const element = document.getElementById(id);
    if (element && element.textContent !== text) element.textContent = text;
  }

  function atBottom() {
    return window.innerHeight + window.scrollY >= document.documentElement.scrollHeight - 80;
  }

  function showLines(lines) {
    const follow = atBottom();
    const batch = document.createDocumentFragment();
    for (const line of lines) {
      const span = document.createElement("span");
      if (KINDS.includes(line.k)) span.className = line.k;
      span.textContent = line.t + "\n";
      batch.appendChild(span);
    }
    log.appendChild(batch);
    while (log.childElementCount > MAX_LINES) log.removeChild(log.firstElementChild);
    if (follow) window.scrollTo(0, document.documentElement.scrollHeight);
  }

  function showState(facts) {
    setText("headline", facts.headline);
    setText("state", facts.state);
    setText("elapsed", facts.elapsed);
    setText("cost", facts.cost);
    setText("tokens", facts.tokens);
    setText("attempts", String(facts.attempts));
    setText("last", facts.last);
    document.title = facts.headline + " · Zeblit";
    const list = document.getElementById("phases");
    const items = facts.phases.map(function (phase) {
      const item = document.createElement("li");
      if (MARKS.includes(phase.mark)) item.className = phase.mark;
      item.textContent = phase.name;
      return item;
    });
    list.replaceChildren(...items);
  }

  const source = new EventSource(main.dataset.events);
  source.addEventListener("open", function () { connection.textContent = "live"; });
  source.addEventListener("error", function () { connection.textContent = "reconnecting"; });
  source.addEventListener("log", function (event) { showLines(JSON.parse(event.data)); });
  source.addEventListener("state", function (event) { showState(JSON.parse(event.data)); });
  source.addEventListener("end", function () {
    source.close();
    connection.textContent = "ended";
    // The page of an ended run has its outcome and diff, and opens no live log.
    window.location.reload();
  });
})();
