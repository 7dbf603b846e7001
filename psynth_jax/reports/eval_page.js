"use strict";
// The questions of the page.  The data of a folder is parsed when the folder is shown; of the list a few hundred entries
// are made at a time, of the questions one.  Texts of models only ever become the text of a node.
//
//   #q=task/id            a question of the first folder
//   #run=2&q=task/id      of the second one
(() => {
  const PAGE = 300; // entries of the list that are made at a time
  const byId = (id) => document.getElementById(id);
  const blocks = document.querySelectorAll("script.questions");
  const parsed = new Map();
  const state = { run: 1, current: -1, shown: [], made: 0, links: new Map() };

  // ---------------------------------------------------------------------------------------------------- data

  function data() {
    if (!parsed.has(state.run)) {
      const found = JSON.parse(blocks[state.run - 1].textContent);
      found.places = new Map();
      found.questions.forEach((question, at) => found.places.set(`${question.task}/${question.id}`, at));
      parsed.set(state.run, found);
    }
    return parsed.get(state.run);
  }

  function haystack(question) {
    // Kept with the question: a search goes through all of them at every letter.
    if (question.haystack === undefined) {
      const texts = [question.task, question.id, question.question, ...question.right];
      for (const worker of question.workers) texts.push(worker.role, worker.text);
      for (const answer of Object.values(question.answers)) texts.push(answer.prediction, answer.written);
      question.haystack = texts.join("\n").toLowerCase();
    }
    return question.haystack;
  }

  function matching() {
    const flag = byId("filter").value;
    const task = byId("task").value;
    const words = byId("search").value.toLowerCase().trim();
    const found = [];
    data().questions.forEach((question, at) => {
      if (flag && !question.flags.includes(flag)) return;
      if (task && question.task !== task.slice(1)) return;
      if (words && !haystack(question).includes(words)) return;
      found.push(at);
    });
    return found;
  }

  function address(at) {
    const question = data().questions[at];
    const q = `q=${encodeURIComponent(question.task)}/${encodeURIComponent(question.id)}`;
    return state.run === 1 ? `#${q}` : `#run=${state.run}&${q}`;
  }

  // -------------------------------------------------------------------------------------------------- elements

  function make(tag, kind, ...children) {
    const element = document.createElement(tag);
    if (kind) element.className = kind;
    element.append(...children); // strings become text nodes
    return element;
  }

  function textBlock(text, label) {
    const block = make("pre", "text", text);
    block.tabIndex = 0; // a long text scrolls, and must do so with the keyboard
    block.setAttribute("aria-label", label);
    block.setAttribute("role", "region");
    return block;
  }

  function number(value) {
    return value.toLocaleString("en", { maximumFractionDigits: 0 });
  }

  function duration(seconds) {
    if (seconds < 1) return `${Number((1000 * seconds).toPrecision(3))} ms`;
    return seconds < 120 ? `${seconds.toFixed(2)} s` : `${(seconds / 60).toFixed(1)} min`;
  }

  function answerOf(question, method) {
    // A method may have the name of something that every object has.
    return Object.hasOwn(question.answers, method.name) ? question.answers[method.name] : undefined;
  }

  function verdict(answer) {
    if (answer.finish === "does_not_fit") return "does not fit";
    return answer.right ? "right" : "wrong";
  }

  function badge(answer) {
    const sign = answer.right ? "✓" : "✗";
    return make("span", answer.right ? "right" : "wrong", `${sign} ${verdict(answer)}`);
  }

  // ------------------------------------------------------------------------------------------------------ list

  function entry(at) {
    const question = data().questions[at];
    const marks = make("span", "marks");
    for (const method of data().methods) {
      const answer = answerOf(question, method);
      if (!answer || method.control) continue;
      const mark = make("span", answer.right ? "right" : "wrong", answer.right ? "✓" : "✗");
      mark.title = `${method.name}: ${verdict(answer)}`;
      mark.setAttribute("role", "img");
      mark.setAttribute("aria-label", mark.title);
      marks.append(mark);
    }
    const several = data().tasks.length > 1;
    const name = several ? `${question.task} ${question.id}` : question.id;
    const link = make("a", "", make("span", "top", make("span", "id", name), marks));
    const snippet = question.question.slice(0, 120) || question.right.join(", ").slice(0, 120);
    link.append(make("span", "snippet", snippet));
    link.href = address(at);
    state.links.set(at, link);
    return make("li", "", link);
  }

  function makeMore() {
    const fresh = document.createDocumentFragment();
    const end = Math.min(state.made + PAGE, state.shown.length);
    for (; state.made < end; state.made += 1) fresh.append(entry(state.shown[state.made]));
    byId("list").append(fresh);
    const left = state.shown.length - state.made;
    byId("more").hidden = left === 0;
    byId("more").textContent = `Show ${Math.min(PAGE, left)} of ${number(left)} more`;
  }

  function fill() {
    state.shown = matching();
    state.made = 0;
    state.links.clear();
    byId("list").replaceChildren();
    makeMore();
    const marked = data().methods.filter((method) => !method.control).map((method) => method.name);
    const found = `${number(state.shown.length)} of ${number(data().questions.length)} questions`;
    byId("found").textContent = `${found}; marks: ${marked.join(", ")}`;
    mark();
  }

  function mark() {
    for (const link of state.links.values()) link.removeAttribute("aria-current");
    const place = state.shown.indexOf(state.current);
    while (place >= state.made) makeMore();
    const link = state.links.get(state.current);
    if (!link) return;
    link.setAttribute("aria-current", "true");
    // Not scrollIntoView, which would move the page as well.
    const index = byId("index");
    const inside = link.getBoundingClientRect();
    const frame = index.getBoundingClientRect();
    if (inside.top < frame.top) index.scrollTop -= frame.top - inside.top;
    if (inside.bottom > frame.bottom) index.scrollTop += inside.bottom - frame.bottom;
  }

  // -------------------------------------------------------------------------------------------------- question

  function took(answer) {
    const facts = [];
    data().scores.forEach((name, at) => {
      const score = answer.scores[at];
      if (score !== null) facts.push(`${name.replaceAll("_", " ")} ${Number(score.toFixed(3))}`);
    });
    if (answer.prefilled !== undefined) facts.push(`${number(answer.prefilled)} tokens prefilled`);
    if (answer.read !== undefined) facts.push(`${number(answer.read)} read`);
    if (answer.wrote !== undefined) facts.push(`${number(answer.wrote)} written`);
    if (answer.ttft !== undefined) facts.push(`${duration(answer.ttft)} to first token`);
    if (answer.total !== undefined) facts.push(`${duration(answer.total)} in all`);
    if (answer.finish === "length") facts.push("cut off");
    if (answer.finish === "no_model") facts.push("asks no model");
    if (answer.confidence !== undefined) facts.push(`confidence ${answer.confidence}`);
    if (answer.route !== undefined) facts.push(`route ${answer.route}`);
    return facts.join(" · ");
  }

  function answerCard(method, answer) {
    const name = method.control ? `${method.name} (control)` : method.name;
    const card = make("section", method.control ? "card control" : "card");
    card.append(make("header", "", make("b", "", name), badge(answer)));
    card.append(make("p", "took", took(answer)));
    card.append(make("div", "text prediction", answer.prediction || "(no answer)"));
    if (answer.error) card.append(make("p", "took", answer.error));
    if (answer.written && answer.written !== answer.prediction) {
      card.append(textBlock(answer.written, `All that ${method.name} wrote`));
    }
    return card;
  }

  function workerCard(worker, at) {
    const facts = [];
    if (worker.finish === "given") facts.push("given text");
    else if (worker.tokens !== null) facts.push(`${number(worker.tokens)} tokens`);
    if (worker.finish === "length") facts.push("cut off");
    if (worker.finish === "does_not_fit") facts.push("does not fit");
    const name = worker.role ? `Worker ${at + 1}: ${worker.role}` : `Worker ${at + 1}`;
    const card = make("section", "card", make("header", "", make("b", "", name)));
    if (facts.length) card.append(make("p", "took", facts.join(" · ")));
    card.append(textBlock(worker.text, name));
    return card;
  }

  function step(label, by) {
    const button = make("button", "", label);
    button.type = "button";
    button.disabled = neighbour(by) === undefined;
    button.addEventListener("click", () => go(by));
    return button;
  }

  function head(question) {
    const place = state.shown.indexOf(state.current);
    const position = place < 0 ? "not in this list" : `${number(place + 1)} of ${number(state.shown.length)}`;
    const steps = make("div", "", make("span", "", position), step("← Previous", -1), step("Next →", 1));
    return make("div", "head", make("h3", "", `${question.task} / ${question.id}`), steps);
  }

  function show() {
    const article = byId("question");
    const question = data().questions[state.current];
    if (!question) {
      article.replaceChildren(make("p", "", "No question is chosen."));
      return;
    }
    const parts = [head(question)];
    if (question.question) parts.push(make("h4", "", "Question"), textBlock(question.question, "Question"));
    const right = question.right.join(" · ") || "(not known)";
    parts.push(make("h4", "", "Right answer"), make("div", "text right", right));
    const answers = make("div", "cards");
    for (const method of data().methods) {
      const answer = answerOf(question, method);
      if (answer) answers.append(answerCard(method, answer));
    }
    parts.push(make("h4", "", "Answers of the methods"), answers);
    if (question.workers.length) {
      const time = question.seconds === null ? "" : `; their batch took ${duration(question.seconds)}`;
      parts.push(make("h4", "", `Workers${time}`), make("div", "cards", ...question.workers.map(workerCard)));
    }
    article.replaceChildren(...parts);
  }

  // ---------------------------------------------------------------------------------------------------- moving

  function neighbour(by) {
    const place = state.shown.indexOf(state.current);
    return place < 0 ? state.shown[0] : state.shown[place + by];
  }

  function go(by) {
    const next = neighbour(by);
    if (next !== undefined) location.hash = address(next);
  }

  function option(value, label) {
    const found = make("option", "", label);
    found.value = value;
    return found;
  }

  function chooseRun(run) {
    state.run = run;
    byId("run").value = String(run);
    // A task's value begins with a sign: a task may be called "".
    const tasks = data().tasks.map((task) => option(`=${task}`, task));
    byId("task").replaceChildren(option("", "all"), ...tasks);
    byId("task-label").hidden = tasks.length < 2;
    for (const each of byId("filter").options) {
      each.dataset.label ??= each.textContent;
      const fits = data().questions.filter((question) => !each.value || question.flags.includes(each.value));
      each.textContent = `${each.dataset.label} (${number(fits.length)})`;
    }
  }

  function follow(first) {
    const route = new URLSearchParams(location.hash.slice(1));
    const wanted = route.get("q");
    if (wanted === null && !first) return; // a link to another part of the page
    const run = Math.min(Math.max(Number.parseInt(route.get("run") ?? "1", 10) || 1, 1), blocks.length);
    const other = first || run !== state.run;
    if (other) chooseRun(run);
    const place = wanted === null ? undefined : data().places.get(wanted);
    if (other) fill();
    state.current = place ?? (wanted === null ? (state.shown[0] ?? -1) : -1);
    mark();
    show();
    const narrow = window.matchMedia("(max-width: 760px)").matches;
    if (wanted === null) return;
    if (first) byId("questions").scrollIntoView();
    else if (narrow) byId("question").scrollIntoView();
  }

  function refilter() {
    fill();
    if (!state.shown.includes(state.current) && state.shown.length) location.hash = address(state.shown[0]);
    else show(); // its position in the list is another one
  }

  function onKey(event) {
    const target = event.target;
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "Escape" && target === byId("search")) target.blur();
    if (target.matches?.("input, select, textarea")) return;
    const arrows = !target.closest?.(".scroll"); // there they move a wide table
    if (event.key === "j" || (event.key === "ArrowRight" && arrows)) go(1);
    else if (event.key === "k" || (event.key === "ArrowLeft" && arrows)) go(-1);
    else if (event.key === "/") byId("search").focus();
    else return;
    event.preventDefault();
  }

  function start() {
    byId("explorer").hidden = false;
    follow(true);
    let waiting = 0;
    byId("search").addEventListener("input", () => {
      clearTimeout(waiting);
      waiting = setTimeout(refilter, 150);
    });
    byId("filter").addEventListener("change", refilter);
    byId("task").addEventListener("change", refilter);
    byId("more").addEventListener("click", makeMore);
    byId("run").addEventListener("change", () => {
      state.current = -1;
      chooseRun(Number(byId("run").value));
      refilter();
    });
    document.addEventListener("keydown", onKey);
    window.addEventListener("hashchange", () => follow(false));
  }

  // Tables and pictures are painted first.
  requestAnimationFrame(() => setTimeout(start, 0));
})();
