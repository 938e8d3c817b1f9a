"use strict";
/* Shows one pair at a time, takes votes by button or key, keeps them in this browser, and saves them as a file. It puts
   no text of the data anywhere: pages are rendered, and escaped, before. */
(() => {
  const at = (id) => document.getElementById(id);
  const review = at("review"), { run, digest, schema } = review.dataset;
  const root = document.documentElement;
  const pairs = [...document.querySelectorAll(".pair")];
  const votable = pairs.filter((pair) => !pair.classList.contains("same"));
  const kept = `finetune-review-${digest}`;
  const words = { left: "Left", right: "Right", tie: "Tie", bothBad: "Both bad" };
  const choices = { l: "left", r: "right", t: "tie", b: "bothBad", 1: "left", 2: "right", 3: "tie", 4: "bothBad" };
  let votes = {}, shown = null;

  /* A browser that keeps nothing (private windows, some phones' file viewers) still votes and saves. */
  const keep = () => {
    try {
      localStorage.setItem(kept, JSON.stringify({ votes, reviewer: at("reviewer").value }));
    } catch { /* the count says how many there are to save */ }
  };
  const restore = () => {
    try {
      const found = JSON.parse(localStorage.getItem(kept)) || {};
      for (const pair of votable) {
        const choice = (found.votes || {})[pair.dataset.id];
        if (Object.hasOwn(words, choice)) votes[pair.dataset.id] = choice;
      }
      at("reviewer").value = String(found.reviewer || "");
    } catch { votes = {}; }
  };

  const say = (text) => { at("said").textContent = text; };

  const matches = (pair) => {
    const same = pair.classList.contains("same"), voted = pair.dataset.id in votes;
    const wanted = { all: true, same, differ: !same, open: !same && !voted, voted };
    const text = at("search").value.trim().toLowerCase();
    return wanted[at("show").value] && (!text || pair.textContent.toLowerCase().includes(text));
  };

  const show = (pair, focus) => {
    shown = pair;
    for (const each of pairs) each.hidden = each !== pair;
    at("none").hidden = pair !== null;
    if (pair && focus) {
      pair.focus({ preventScroll: true });
      pair.scrollIntoView({ block: "start" });
    }
  };

  /* The next pair of the filter in this direction, around the end. */
  const move = (step, wanted = matches) => {
    const from = pairs.indexOf(shown);
    for (let far = 1; far <= pairs.length; far += 1) {
      const pair = pairs[(((from + step * far) % pairs.length) + pairs.length) % pairs.length];
      if (pair !== shown && wanted(pair)) {
        show(pair, true);
        return true;
      }
    }
    return false;
  };

  const filter = () => {
    if (!shown || !matches(shown)) show(pairs.find(matches) || null, false);
  };

  const count = () => {
    const done = Object.keys(votes).length;
    at("progress").value = done;
    at("count").textContent = `You have voted on ${done} of ${votable.length} pairs.`;
    for (const pair of votable) {
      for (const button of pair.querySelectorAll("[data-choice]")) {
        button.setAttribute("aria-pressed", String(votes[pair.dataset.id] === button.dataset.choice));
      }
    }
  };

  const vote = (choice) => {
    if (!shown || !votable.includes(shown)) return;
    const { id } = shown.dataset, name = `Pair ${pairs.indexOf(shown) + 1}`;
    if (votes[id] === choice) {
      delete votes[id];
      say(`${name}: vote removed.`);
      count();
      keep();
      return;
    }
    votes[id] = choice;
    count();
    keep();
    const open = (pair) => matches(pair) && !pair.classList.contains("same") && !(pair.dataset.id in votes);
    const more = move(1, open);
    say(`${name}: ${words[choice]}.${more ? "" : " No pairs are left in this view: save your votes."}`);
  };

  const save = () => {
    const reviewer = at("reviewer"), done = Object.keys(votes).length;
    if (!reviewer.value || !reviewer.checkValidity()) {
      say("Enter your name first: lower-case letters, digits and hyphens.");
      reviewer.focus();
      return;
    }
    if (!done) {
      say("There are no votes to save yet.");
      return;
    }
    const file = {
      schemaVersion: Number(schema),
      run,
      digest,
      reviewer: reviewer.value,
      votes: votable.filter((pair) => pair.dataset.id in votes)
        .map((pair) => ({ pair: pair.dataset.id, choice: votes[pair.dataset.id] })),
    };
    const text = `${JSON.stringify(file, null, 1)}\n`;
    at("file").value = text;
    at("copy").hidden = false;
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
    link.download = `votes-${reviewer.value}-${digest.slice(0, 8)}.json`;
    link.click();
    URL.revokeObjectURL(link.href);
    say(`${done} votes saved as ${link.download}. Nothing was sent: give the file to the person who asked for your votes.`);
  };

  const toggle = (box, name) => root.classList.toggle(name, at(box).checked);
  const flip = (box) => {
    at(box).checked = !at(box).checked;
    at(box).dispatchEvent(new Event("change"));
  };

  const press = (event) => {
    const typing = event.target.closest("input:not([type=checkbox]), select, textarea");
    if (typing || event.ctrlKey || event.metaKey || event.altKey || !at("keys").checked) return;
    const key = event.key.toLowerCase();
    /* A key that is held down repeats itself: it would vote on pairs that nobody has read. */
    if (Object.hasOwn(choices, key)) { if (!event.repeat) vote(choices[key]); }
    else if (key === "n") move(1);
    else if (key === "p") move(-1);
    else if (key === "d") flip("marks");
    else if (key === "e") flip("expected");
    else return;
    event.preventDefault();
  };

  root.classList.add("js");
  at("tools").hidden = false;
  for (const group of document.querySelectorAll(".votes")) group.hidden = false;
  restore();
  count();
  filter();
  document.addEventListener("keydown", press);
  at("pairs").addEventListener("click", (event) => {
    const button = event.target.closest("[data-choice]");
    if (button) vote(button.dataset.choice);
  });
  at("previous").addEventListener("click", () => move(-1));
  at("next").addEventListener("click", () => move(1));
  at("save").addEventListener("click", save);
  at("reviewer").addEventListener("input", keep);
  at("show").addEventListener("change", filter);
  at("search").addEventListener("input", filter);
  at("marks").addEventListener("change", () => toggle("marks", "marks"));
  at("expected").addEventListener("change", () => toggle("expected", "with-expected"));
})();
