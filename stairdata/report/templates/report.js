"use strict";
(() => {
  const place = document.getElementById("examples-list");
  if (!place) return;
  const data = JSON.parse(document.getElementById("data").textContent);
  const AT_A_TIME = 25;
  const search = document.getElementById("search");
  const chosen = data.filters.map((name) => [name, document.getElementById("filter-" + name)]);
  const more = document.getElementById("more");
  const status = document.getElementById("examples-status");
  let found = [];
  let shown = 0;

  // Every text of a prompt or a model goes through here: it becomes a text node, never markup.
  function element(name, text, parent) {
    const made = document.createElement(name);
    if (text !== undefined && text !== null) made.textContent = String(text);
    if (parent) parent.append(made);
    return made;
  }

  function fill(details, row) {
    const facts = element("dl", null, details);
    for (const [name, value] of [["from", row.artifact], ...data.filters.map((each) => [each, row[each]])]) {
      element("dt", name, facts);
      element("dd", value, facts);
    }
    for (const [name, text] of row.texts) {
      element("h3", name, details);
      const shownText = element("pre", text, details);
      shownText.dir = "auto";
    }
  }

  function add(row) {
    const item = element("li", null, place);
    const details = element("details", null, item);
    element("summary", row.kind + " " + row.label, details);
    details.addEventListener("toggle", () => {
      if (details.open && !details.querySelector("pre")) fill(details, row);
    });
  }

  function show(count) {
    const next = found.slice(shown, shown + count);
    next.forEach(add);
    shown += next.length;
    more.hidden = shown >= found.length;
    status.textContent = found.length + " of " + data.examples.length + " examples match; " + shown + " are listed.";
  }

  function matches(row, words) {
    if (chosen.some(([name, select]) => select.value && row[name] !== select.value)) return false;
    return !words || row.texts.some(([, text]) => text.toLowerCase().includes(words));
  }

  function update() {
    const words = search.value.trim().toLowerCase();
    found = data.examples.filter((row) => matches(row, words));
    shown = 0;
    place.replaceChildren();
    show(AT_A_TIME);
  }

  search.addEventListener("input", update);
  for (const [, select] of chosen) select.addEventListener("change", update);
  more.addEventListener("click", () => {
    const first = shown;
    show(AT_A_TIME);
    place.children[first].querySelector("summary").focus();
  });
  document.getElementById("reset").addEventListener("click", () => {
    search.value = "";
    for (const [, select] of chosen) select.value = "";
    update();
    search.focus();
  });
  update();
})();
