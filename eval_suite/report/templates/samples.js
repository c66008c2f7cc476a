"use strict";
// Texts reach the page as text alone: nothing here writes HTML.
const steeringSamples = (() => {
  const PAGE = 8, FIRST = 2;  // cards of a page; those filled at once, more than a window of 1280 by 900 shows
  const files = new Map(), waiting = new Map();
  const form = document.getElementById("filters"), list = document.getElementById("list");
  let about = null, found = [], page = 0, drawn = 0;

  const element = (tag, attributes = {}, ...children) => {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    made.append(...children.filter((child) => child !== null));
    return made;
  };

  const receive = (name, content) => {
    files.set(name, content);
    for (const resolve of waiting.get(name) ?? []) resolve(content);
    waiting.delete(name);
    if (name === "index") open(content);
  };

  const load = (name) => files.has(name) ? Promise.resolve(files.get(name)) : new Promise((resolve, reject) => {
    if (waiting.has(name)) { waiting.get(name).push(resolve); return; }
    waiting.set(name, [resolve]);
    const script = element("script", { src: `samples/${name}.js` });
    script.onerror = () => { waiting.delete(name); reject(new Error(`samples/${name}.js cannot be read`)); };
    document.head.append(script);
  });

  const marks = new Map(), lower = new WeakMap();

  // Of each sample the words that a search looks through; made at the first search, kept for the next.
  const searched = (set) => {
    if (!lower.has(set)) lower.set(set, set.samples.map(([id, , question]) => `${id}\n${question}`.toLowerCase()));
    return lower.get(set);
  };

  const number = (n) => String(n).padStart(3, "0");
  const current = () => about.sets[Number(form.elements.set.value) || 0];
  const count = (n, what) => `${n.toLocaleString("en")} ${what}${n === 1 ? "" : "s"}`;

  const choose = (name, pairs) => {
    const select = form.elements[name], before = select.value;
    select.replaceChildren(...pairs.map(([value, text]) => element("option", { value }, text)));
    if (pairs.some(([value]) => value === before)) select.value = before;
  };

  const options = () => {
    const set = current(), distinct = (key) => [...new Set(set.arms.map((arm) => arm[key]))].filter(Boolean);
    const any = (texts) => [["", "any"], ...texts.map((text) => [text, text])];
    choose("task", [["", "all"], ...set.tasks.map((task, i) => [String(i), task.replaceAll("_", " ") || "none"])]);
    choose("direction", any(distinct("direction")));
    choose("method", any(distinct("method")));
    choose("outcome", [["", "any"], ...set.outcomes.map(([letter, name]) => [letter, name])]);
    form.querySelector("[data-for=set]").hidden = about.sets.length < 2;
    form.querySelector("[data-for=direction]").hidden = distinct("direction").length < 2;
    const legend = document.querySelector("#legend dl");
    legend.replaceChildren(...set.outcomes.flatMap(([letter, name, meaning]) => [
      element("dt", {}, mark(letter), ` ${name}`), element("dd", {}, `the answer ${meaning}`)]));
    const said = set.arms.some((arm) => arm.base !== null) ? [
      ["flipped", "the method's outcome is the wanted one (follow, or right), and the unsteered model's is not"],
      ["broke", "the method spoils an answer: an error, or of a question a wrong answer, where the unsteered model gave none"],
      ["strip", "outcomes at all strengths scored, the smallest first; framed is the one that tables report, a dot was not asked"],
    ] : [];
    legend.append(...said.flatMap(([word, meaning]) => [element("dt", {}, word), element("dd", {}, meaning)]));
  };

  const arms = (set) => {
    const direction = form.elements.direction.value, method = form.elements.method.value;
    return set.arms.map((arm, i) => i).filter((i) => (!direction || !set.arms[i].direction || set.arms[i].direction === direction)
      && (!method || set.arms[i].method === method));
  };

  const filter = () => {
    const set = current(), wanted = arms(set), { task, outcome, change, words } = form.elements;
    const bit = Number(change.value), letter = outcome.value, text = words.value.trim().toLowerCase();
    const words_of = text ? searched(set) : null, kind = task.value ? Number(task.value) : null;
    const hit = (outcomes, events) => wanted.some((i) => (!letter || outcomes[i] === letter)
      && (!bit || (parseInt(events[i], 16) & bit)));
    found = [];
    set.samples.forEach(([, own, , outcomes, events], i) => {
      if ((kind === null || own === kind) && (!text || words_of[i].includes(text)) && (!(letter || bit) || hit(outcomes, events))) found.push(i);
    });
    const kept = set.total > set.samples.length ? ` (${count(set.samples.length, "sample")}, evenly spread, of ${set.total.toLocaleString("en")})` : "";
    document.getElementById("count").textContent = found.length === set.samples.length
      ? `${count(found.length, "sample")}${kept}` : `${count(found.length, "sample")} of ${set.samples.length.toLocaleString("en")}${kept}`;
  };

  const mark = (letter) => {
    if (!marks.has(letter)) marks.set(letter, element("span", { class: `o o-${letter === "." ? "none" : letter}` }, letter === "." ? "·" : letter));
    return marks.get(letter).cloneNode(true);
  };
  const nameOf = (set, letter) => (set.outcomes.find(([own]) => own === letter) ?? [null, "not asked"])[1];

  const strip = (set, arm, [letters, said], texts) => {
    if (arm.strengths.length < 2) return "";
    const told = [...letters].map((letter, i) => `${arm.strengths[i]}: ${nameOf(set, letter)}`);
    const made = element("span", { class: "strip", role: "img", "aria-label": `Outcomes by strength. ${told.join(", ")}` },
      ...[...letters].map(mark));
    made.children[arm.chosen].classList.add("chosen");
    // A page has some thousand marks: what a pointer is told of them is written when one comes near.
    made.addEventListener("pointerenter", () => [...made.children].forEach((own, i) => {
      own.title = `strength ${told[i]}${said[i] < 0 ? "" : `\n${texts[said[i]]}`}`;
    }), { once: true });
    return made;
  };

  const row = (set, i, sample, detail) => {
    const arm = set.arms[i], [letters, said, values] = detail.arms[i], at = arm.chosen, letter = letters[at];
    if (!/[^.]/.test(letters)) return null;
    const event = parseInt(sample[4][i], 16), score = values?.[at] ?? null;
    return element("tr", {},
      element("th", { scope: "row" }, arm.method, ...(arm.variant ? [" ", element("span", { class: "tag" }, arm.variant)] : [])),
      element("td", { class: "nowrap" }, arm.strength),
      element("td", { class: "answer" }, said[at] < 0 ? "not asked" : detail.texts[said[at]] || "(empty)",
        ...(detail.notes?.[i] ? [" ", element("small", {}, detail.notes[i])] : [])),
      element("td", { class: "nowrap" }, mark(letter), ` ${nameOf(set, letter)}${score === null ? "" : ` ${score.toFixed(2)}`} `,
        ...(event & 1 ? [element("span", { class: "tag flipped" }, "flipped")] : []),
        ...(event & 2 ? [element("span", { class: "tag broke" }, "broke")] : [])),
      element("td", { class: "over" }, strip(set, arm, detail.arms[i], detail.texts)));
  };

  const answers = (set, sample, detail, shown) => {
    const swept = shown.some((i) => set.arms[i].strengths.length > 1);
    const table = element("table", { class: "answers" }, element("caption", { class: "unseen" }, `Answers to ${sample[0]}`),
      element("thead", {}, element("tr", {}, ...["Method", "Strength", "Answer", "Outcome", swept ? "Over strengths" : ""].map((head) =>
        head ? element("th", { scope: "col" }, head) : element("td")))));
    for (const direction of new Set(shown.map((i) => set.arms[i].direction))) {
      const rows = shown.filter((i) => set.arms[i].direction === direction).map((i) => row(set, i, sample, detail)).filter(Boolean);
      const head = direction ? [element("tr", {}, element("th", { scope: "rowgroup", colspan: 5 }, `Towards ${direction}`))] : [];
      if (rows.length) table.append(element("tbody", {}, ...head, ...rows));
    }
    return scrolling(table, `Answers to ${sample[0]}`);
  };

  const scrolling = (content, label) => element("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": label }, content);

  const brief = (value) => value === undefined ? "" : value && Math.abs(value) < 0.001 ? value.toExponential(0) : value.toFixed(3);

  const measured = (numbers) => {
    const metrics = Object.keys(numbers), prompts = [...new Set(metrics.flatMap((metric) => Object.keys(numbers[metric])))];
    if (!metrics.length) return null;
    const table = element("table", {}, element("caption", { class: "unseen" }, "What diagnostics measured"),
      element("thead", {}, element("tr", {}, element("th", { scope: "col" }, "Prompt"), ...prompts.map((p) => element("th", { scope: "col" }, p)))),
      element("tbody", {}, ...metrics.map((metric) => element("tr", {}, element("th", { scope: "row" }, metric),
        ...prompts.map((p) => element("td", {}, brief(numbers[metric][p])))))));
    const details = element("details", { class: "numbers-of" }, element("summary", {}, "Measured"), scrolling(table, "What diagnostics measured"));
    details.open = true;
    return details;
  };

  const partOf = (set, place) => `${about.sets.indexOf(set)}-${number(Math.floor(place / about.part))}`;

  // Asks for every file of a page at once; who needs one waits for it, and tells what fails.
  const ask = (set, places) => {
    const names = places.flatMap((place) => [partOf(set, place), ...set.samples[place][5].map(([bundle]) => `pictures-${number(bundle)}`)]);
    for (const name of new Set(names)) load(name).catch(() => {});
  };

  const fill = async (card, set, sample, place, shown) => {
    const detail = (await load(partOf(set, place)))[place % about.part], places = sample[5];
    const facts = element("dl", { class: "said" }, element("dt", {}, "Question"), element("dd", { class: "question" }, sample[2]),
      ...detail.facts.flatMap(([name, text]) => [element("dt", {}, name), element("dd", {}, text)]));
    const pictures = places.map((_, i) => element("img", {
      alt: `Picture ${places.length > 1 ? `${i + 1} ` : ""}of sample ${sample[0]}` }));
    card.querySelector(".waiting").remove();
    card.append(element("div", {}, ...pictures, measured(detail.numbers)), element("div", {}, facts, answers(set, sample, detail, shown)));
    return Promise.all(pictures.map(async (picture, i) => {
      const [bundle, at] = places[i];
      picture.src = (await load(`pictures-${number(bundle)}`))[at];
    }));
  };

  const card = (set, place, shown) => {
    const sample = set.samples[place];
    const link = element("a", { href: `#${new URLSearchParams({ set: form.elements.set.value, words: sample[0] })}` }, sample[0]);
    const made = element("article", { class: "sample" }, element("h2", {}, link, element("small", {}, set.tasks[sample[1]].replaceAll("_", " "))),
      element("p", { class: "waiting" }, "…"));
    made.fill = () => fill(made, set, sample, place, shown).catch((fault) => { made.querySelector(".waiting").textContent = String(fault.message); });
    return made;
  };

  const draw = () => {
    const set = current(), last = Math.max(0, Math.ceil(found.length / PAGE) - 1);
    page = Math.min(Math.max(0, page), last);
    const wanted = arms(set), bases = wanted.map((i) => set.arms[i].base).filter((i) => i !== null);
    const shown = [...new Set([...wanted, ...bases])].sort((a, b) => a - b);
    const places = found.slice(page * PAGE, (page + 1) * PAGE), cards = places.map((place) => card(set, place, shown));
    ask(set, places);
    list.replaceChildren(...cards);
    const turn = (text, to) => {
      const button = element("button", { type: "button" }, text);
      button.disabled = to < 0 || to > last;
      button.onclick = () => { page = to; remember(); draw(); window.scrollTo(0, 0); };
      return button;
    };
    for (const nav of document.querySelectorAll(".pages")) {
      nav.hidden = last === 0;
      nav.replaceChildren(turn("Earlier", page - 1), `page ${page + 1} of ${last + 1}`, turn("Later", page + 1));
    }
    return filled(cards);
  };

  const filled = async (cards) => {
    const own = ++drawn;
    await Promise.all(cards.slice(0, FIRST).map((made) => made.fill()));
    if (own !== drawn) return;
    list.dataset.shown = String(own);
    await new Promise((painted) => setTimeout(painted));
    if (own !== drawn) return;
    await Promise.all(cards.slice(FIRST).map((made) => made.fill()));
    if (own === drawn) list.dataset.drawn = String(own);
  };

  const remember = () => {
    const said = [...new FormData(form)].filter(([name, value]) => value && !(name === "set" && value === "0"));
    history.replaceState(null, "", `#${new URLSearchParams([...said, ...(page ? [["page", page + 1]] : [])])}`);
  };

  const recall = () => {
    const said = new URLSearchParams(location.hash.slice(1));
    form.reset();
    for (const name of ["set", "task", "direction", "method", "outcome", "change", "words"]) {
      if (name === "task") options();
      if (said.has(name)) form.elements[name].value = said.get(name);
    }
    page = (Number(said.get("page")) || 1) - 1;
    filter();
    return draw();
  };

  const changed = (event) => {
    if (event.target === form.elements.set) options();
    page = 0;
    filter();
    remember();
    return draw();
  };

  const open = (content) => {
    about = content;
    choose("set", about.sets.map((set, i) => [String(i), set.title]));
    form.addEventListener("input", changed);
    form.querySelector("button").addEventListener("click", () => { history.replaceState(null, "", "#"); recall(); });
    form.addEventListener("submit", (event) => event.preventDefault());
    window.addEventListener("hashchange", recall);
    recall();
  };

  return { receive };
})();
