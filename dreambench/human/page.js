// The rater page: consent, examples with feedback, items one at a time, the end. Every answer is kept in localStorage at once and, when
// the page is served, sent to the server. Text of documents is only ever set as textContent.
//
// What scripts (tests, automated studies) may rely on:
//   body[data-step]            consent, training, item, finished, failed (the examples, twice) or stopped (see #notice)
//   #agree                     starts; #back, #next, #copy (answers so far) and #download (on the last page)
//   #item[data-item]           the item shown; .document > .text, .frame > img or .broken
//   fieldset[data-question]    a question; .active is the one that keys answer; .feedback after an example's answer
//   button[data-question][data-answer]   an answer (0, 1, ... or a, b, tie, both_good, both_bad), aria-pressed when given
//   #place, #progress, #status (aria-live), #code (completion code)
//   Keys: 1-9 the answers in order; a, b, t (tie), g (both good), n (neither); Enter or → next; ← back
"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const study = JSON.parse(byId("study").textContent);
  const served = study.served || null;
  const KEY = `dreambench ${study.study} ${study.rater}`;
  const TRIES = 2;
  const LONG = 20000; // characters of a text that scrolls in a box of its own
  const VOTES = [["a", "A is better", "a"], ["b", "B is better", "b"], ["tie", "Tie", "t"], ["both_good", "Both are good", "g"],
    ["both_bad", "Neither is good", "n"]];
  const training = study.items.filter((item) => item.training);
  const items = study.items.filter((item) => !item.training);
  const byItem = new Map(study.items.map((item) => [item.id, item]));
  const questions = new Map(study.questions.map((question) => [question.id, question]));
  const main = byId("main"), next = byId("next"), back = byId("back"), copy = byId("copy");

  const state = { ratings: [], agreed: false, at: 0, seconds: {} };
  let shown = null; // the item on the page
  let given = new Map(); // its answers by question
  let active = 0; // its question that keys answer
  let since = null; // when it last became visible, in ms
  let sent = 0; // ratings that the server holds
  let sending = false;
  let offline = false;
  let stopped = false;
  let database = null;

  // --- seals: SHA-256 (FIPS 180-4); crypto.subtle is missing where a page is neither on disk nor https -----------------

  const primes = [];
  for (let n = 2; primes.length < 64; n++) if (primes.every((p) => n % p)) primes.push(n);
  const fraction = (x) => Math.floor((x - Math.floor(x)) * 2 ** 32);
  const ROUND = primes.map((p) => fraction(Math.cbrt(p)));
  const START = primes.slice(0, 8).map((p) => fraction(Math.sqrt(p)));
  const rotate = (x, n) => (x >>> n) | (x << (32 - n));

  function sha256(text) {
    const bytes = new TextEncoder().encode(text);
    const padded = new DataView(new ArrayBuffer(((bytes.length + 72) >> 6) << 6));
    bytes.forEach((byte, i) => padded.setUint8(i, byte));
    padded.setUint8(bytes.length, 0x80);
    padded.setUint32(padded.byteLength - 4, bytes.length * 8);
    const hash = Int32Array.from(START);
    const w = new Int32Array(64);
    for (let block = 0; block < padded.byteLength; block += 64) {
      let [a, b, c, d, e, f, g, h] = hash;
      for (let i = 0; i < 64; i++) {
        if (i < 16) {
          w[i] = padded.getInt32(block + 4 * i);
        } else {
          const s0 = rotate(w[i - 15], 7) ^ rotate(w[i - 15], 18) ^ (w[i - 15] >>> 3);
          const s1 = rotate(w[i - 2], 17) ^ rotate(w[i - 2], 19) ^ (w[i - 2] >>> 10);
          w[i] = w[i - 16] + s0 + w[i - 7] + s1;
        }
        const t1 = h + (rotate(e, 6) ^ rotate(e, 11) ^ rotate(e, 25)) + ((e & f) ^ (~e & g)) + ROUND[i] + w[i];
        const t2 = (rotate(a, 2) ^ rotate(a, 13) ^ rotate(a, 22)) + ((a & b) ^ (a & c) ^ (b & c));
        [h, g, f, e, d, c, b, a] = [g, f, e, (d + t1) | 0, c, b, a, (t1 + t2) | 0];
      }
      [a, b, c, d, e, f, g, h].forEach((x, i) => { hash[i] += x; });
    }
    return Array.from(hash, (x) => (x >>> 0).toString(16).padStart(8, "0")).join("");
  }

  // The same as Rating.sealed in dreambench/human/study.py.
  const seal = (r, before) =>
    sha256(JSON.stringify([study.token, before, r.study, r.rater, r.item, r.question, String(r.answer), r.seconds.toFixed(3)])).slice(0, 32);
  const lastSeal = (ratings) => (ratings.length ? ratings[ratings.length - 1].seal : "");

  // --- keeping answers ------------------------------------------------------------------------------------------------

  // `done` is called once a crash cannot lose what was saved.
  function save(done = () => {}) {
    const kept = JSON.stringify(state);
    try {
      localStorage.setItem(KEY, kept);
    } catch {
      if (!served) notify("This browser does not keep answers. Save a copy (above) before you close this page.");
    }
    try {
      if (!database) return done();
      const transaction = database.transaction("states", "readwrite", { durability: "strict" });
      transaction.objectStore("states").put(kept, KEY);
      transaction.oncomplete = done;
    } catch {
      database = null; // the browser has closed it
      done();
    }
  }

  // Browsers write localStorage to disk some seconds late, and a crash loses those answers; a strict transaction is on disk at once.
  function openDatabase() {
    return new Promise((resolve) => {
      let request;
      try {
        request = indexedDB.open("dreambench", 1);
      } catch {
        return resolve(null); // localStorage alone must do
      }
      request.onupgradeneeded = () => request.result.createObjectStore("states");
      request.onsuccess = () => resolve(request.result);
      request.onerror = request.onblocked = () => resolve(null);
      setTimeout(() => resolve(null), 3000);
    });
  }

  function stored() {
    return new Promise((resolve) => {
      if (!database) return resolve(null);
      const request = database.transaction("states").objectStore("states").get(KEY);
      request.onsuccess = () => resolve(request.result);
      request.onerror = () => resolve(null);
    });
  }

  // What was kept, with the ratings up to the first that is damaged.
  function restored(kept) {
    const ratings = [];
    let saved = {}, damaged = false;
    try {
      saved = JSON.parse(kept || "{}");
      for (const rating of saved.ratings || []) {
        if (rating.seal !== seal(rating, lastSeal(ratings))) throw new Error("edited");
        ratings.push(rating);
      }
    } catch {
      damaged = true;
    }
    return { ...saved, ratings, damaged };
  }

  async function load() {
    let saved = restored(null);
    try {
      saved = restored(localStorage.getItem(KEY));
    } catch { /* nothing is kept here: save() says so */ }
    database = await openDatabase();
    const copy = restored(await stored());
    if (copy.ratings.length > saved.ratings.length) saved = copy;
    if (saved.damaged) notify(`Answers kept in this browser are damaged after the first ${saved.ratings.length}. Please answer the others again.`);
    const own = saved.ratings;
    // The server's answers are the truth; later ones kept here count if they follow them.
    const theirs = served ? served.ratings : [];
    sent = theirs.length;
    state.ratings = theirs.every((rating, i) => own[i] && own[i].seal === rating.seal) ? own : theirs.slice();
    state.agreed = saved.agreed === true || state.ratings.length > 0;
    state.seconds = { ...saved.seconds };
    for (const { item, seconds } of state.ratings) state.seconds[item] = Math.max(state.seconds[item] || 0, seconds);
    const open = items.findIndex((item) => !complete(item));
    const end = open < 0 ? items.length : open;
    state.at = Number.isInteger(saved.at) && saved.at >= 0 ? Math.min(saved.at, end) : end;
  }

  function record(item, question, answer) {
    tick();
    const seconds = Math.round(state.seconds[item.id] * 1000) / 1000;
    const rating = { study: study.study, rater: study.rater, item: item.id, question: question.id, answer, seconds };
    rating.seal = seal(rating, lastSeal(state.ratings));
    state.ratings.push(rating);
    const number = state.ratings.length;
    status("Saving …");
    save(() => { if (!served && number === state.ratings.length) status("Saved"); });
    send();
  }

  // One at a time and in order, until the server has them all.
  async function send(wait = 1000) {
    if (!served || sending || stopped) return;
    sending = true;
    try {
      while (sent < state.ratings.length) {
        status("Sending …");
        const body = JSON.stringify(state.ratings[sent]);
        const reply = await fetch("ratings", { method: "POST", headers: { "Content-Type": "application/json" }, body, keepalive: true });
        if (reply.status >= 500) throw new Error(reply.statusText);
        const answer = await reply.json();
        if (!reply.ok) return stop(answer.message);
        sent += 1;
        served.code = answer.code;
      }
      if (offline) notify("");
      offline = false;
      status("Saved");
      if (document.body.dataset.step === "finished") show();
    } catch {
      offline = true;
      notify("There is no connection. Your answers are kept in this browser and will be sent.");
      setTimeout(() => send(Math.min(2 * wait, 30000)), wait);
    } finally {
      sending = false;
    }
  }

  function download() {
    const lines = state.ratings.map((rating) => JSON.stringify(rating) + "\n");
    const url = URL.createObjectURL(new Blob(lines, { type: "application/octet-stream" }));
    element("a", { href: url, download: `${study.rater}.jsonl` }).click();
    setTimeout(() => URL.revokeObjectURL(url), 60000);
  }

  // Adds the time since the last call to the item shown, if it was visible and in focus meanwhile.
  function tick() {
    const now = performance.now();
    if (shown) state.seconds[shown.id] = (state.seconds[shown.id] || 0) + (since === null ? 0 : (now - since) / 1000);
    since = shown && document.visibilityState === "visible" && document.hasFocus() ? now : null;
  }

  // --- what has been answered -----------------------------------------------------------------------------------------

  // The last answers to an item; of an example, those of the try that goes on.
  function answersTo(item) {
    const ratings = item.training ? tries().at(-1) : state.ratings;
    return new Map(ratings.filter((rating) => rating.item === item.id).map((rating) => [rating.question, rating.answer]));
  }

  function complete(item) {
    const answers = answersTo(item);
    return item.questions.every((id) => answers.has(id));
  }

  // Answers to the examples, a list for each try; the last list is of the try that goes on. Each example is answered once in a try.
  function tries() {
    const answers = state.ratings.filter((rating) => byItem.get(rating.item)?.training);
    const length = training.reduce((n, item) => n + item.questions.length, 0);
    const lists = [];
    for (let i = 0; i <= answers.length && length; i += length) lists.push(answers.slice(i, i + length));
    return lists;
  }

  const isRight = ({ item, question, answer }) => [undefined, answer].includes(byItem.get(item).expected[question]);

  function screening() {
    const done = tries().slice(0, -1);
    if (!training.length || done.some((answers) => answers.every(isRight))) return "passed";
    if (done.length < TRIES) return "training";
    return served ? "failed" : "passed"; // on paper nobody is sent away; the import sees the answers
  }

  // --- showing --------------------------------------------------------------------------------------------------------

  function element(tag, attributes, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (typeof value === "function") made.addEventListener(name, value);
      else if (value !== undefined && value !== false) made.setAttribute(name, value === true ? "" : value);
    }
    made.append(...children);
    return made;
  }

  const text = (tag, content, attributes = {}) => element(tag, { dir: "auto", ...attributes }, content);
  const status = (message) => { byId("status").textContent = message; };

  function notify(message) {
    byId("notice").textContent = message;
    byId("notice").hidden = !message;
  }

  function show() {
    const phase = screening();
    if (stopped) return;
    if (!state.agreed) showConsent();
    else if (phase === "training") showItem(training.find((item) => !complete(item)));
    else if (phase === "failed") showFailed();
    else if (state.at < items.length) showItem(items[state.at]);
    else showFinished();
    back.hidden = !state.agreed || phase !== "passed" || state.at === 0;
    copy.hidden = !state.ratings.length || phase === "failed" || document.body.dataset.step === "finished";
    window.scrollTo(0, 0);
    main.focus({ preventScroll: true });
  }

  function place(step, words, done, total) {
    document.body.dataset.step = step;
    main.classList.toggle("plain", !shown);
    next.hidden = !shown;
    byId("place").textContent = words;
    byId("progress").value = total ? done / total : 0;
    status("");
  }

  function leaveItem() {
    tick();
    shown = null;
  }

  function showConsent() {
    place("consent", "", 0, 1);
    const agree = () => { state.agreed = true; save(); show(); };
    main.replaceChildren(
      text("h2", study.title),
      text("p", study.consent, { class: "text", id: "consent" }),
      ...(study.warning ? [element("div", { class: "warning" }, element("b", {}, "Please note"), text("span", study.warning))] : []),
      element("button", { type: "button", class: "primary", id: "agree", click: agree }, "I agree and take part"),
    );
  }

  function showFailed() {
    leaveItem();
    place("failed", "", 1, 1);
    main.replaceChildren(
      element("h2", {}, "Thank you for your interest"),
      element("p", {}, "The examples were not answered as this study needs them, so it ends here for you. You can close this page; if you came from a recruiting platform, please return the submission there."),
    );
  }

  function showFinished() {
    leaveItem();
    place("finished", `${items.length} of ${items.length}`, 1, 1);
    const button = element("button", { type: "button", class: served ? "" : "primary", id: "download", click: download }, `Download ${study.rater}.jsonl`);
    const end = !served ? ["Download your ratings and send the file to the organiser of the study."]
      : sent < state.ratings.length ? ["Your last answers are being sent. Please leave this page open."]
      : served.code ? ["All answers are stored. Your completion code:"] : ["All answers are stored. You can close this page."];
    main.replaceChildren(
      element("h2", {}, "Thank you, that was the last one"),
      element("p", {}, ...end),
      ...(served && served.code && sent === state.ratings.length ? [element("p", {}, element("output", { id: "code" }, served.code))] : []),
      element("p", { class: "copy" }, button),
      element("p", { class: "keys" }, "Until you are done with this page you can go back and change answers."),
    );
  }

  function showItem(item) {
    tick();
    const again = shown && shown.training && item === training[0];
    shown = item;
    since = null;
    tick();
    given = answersTo(item);
    active = Math.max(0, item.questions.findIndex((id) => !given.has(id)));
    if (item.training) place("training", `Example ${training.indexOf(item) + 1} of ${training.length}`, 0, 1);
    else place("item", `${state.at + 1} of ${items.length}`, items.filter(complete).length, items.length);
    const pair = item.documents.length > 1;
    const note = "Some answers were not the expected ones. Please do the examples once more.";
    main.replaceChildren(
      ...(again ? [element("p", { class: "warning", id: "again" }, note)] : []),
      element("p", { class: "instruction" }, element("small", {}, "Instruction"), text("span", item.instruction)),
      element("div", { id: "item", class: `item ${pair ? "pair" : "single"}`, "data-item": item.id },
        element("div", { class: "documents" }, ...item.documents.map((parts, i) => documentView(parts, pair ? "AB"[i] : ""))),
        element("div", { class: "questions" }, ...item.questions.map((id, i) => questionView(questions.get(id), i)), keysView(item))),
    );
    mark();
  }

  function documentView(parts, name) {
    const images = parts.filter((part) => "image" in part);
    const label = `Document ${name}`.trim();
    const views = parts.map((part) => {
      if ("image" in part) return imageView(part, `Image ${images.indexOf(part) + 1} of ${images.length}${name && ` in document ${name}`}`);
      const long = part.text.length > LONG;
      return text("p", part.text, { class: long ? "text long" : "text", tabindex: long && "0" });
    });
    const heading = name ? [element("h3", {}, label)] : [];
    return element("section", { class: "document", "aria-label": label }, ...heading,
      ...(views.length ? views : [element("p", { class: "empty" }, "This document is empty.")]));
  }

  function imageView(part, alt) {
    const frame = element("figure", { class: "frame" });
    const fail = () => frame.replaceChildren(element("div", { class: "broken", role: "img", "aria-label": alt }, `${alt} cannot be shown (${part.image}).`));
    const source = study.images ? study.images[part.image] : `images/${encodeURIComponent(part.image)}`;
    if (source) frame.append(element("img", { alt, width: part.width, height: part.height, error: fail, src: source }));
    else fail();
    return frame;
  }

  function choices(question) {
    if (question.kind === "pairwise") return VOTES.map(([answer, label, key]) => ({ answer, label, key }));
    const first = question.kind === "accept" ? 0 : 1;
    return question.labels.map((label, i) => ({ answer: first + i, label, key: i < 9 ? String(i + 1) : "" }));
  }

  function questionView(question, index) {
    const answers = choices(question).map(({ answer, label, key }) =>
      element("button", { type: "button", class: "answer", "data-question": question.id, "data-answer": answer, click: () => choose(index, answer) },
        ...(key ? [element("kbd", { "aria-hidden": "true" }, key.toUpperCase())] : []), text("span", label)));
    return element("fieldset", { "data-question": question.id, focusin: () => { active = index; mark(); } },
      text("legend", question.text), element("div", { class: "answers" }, ...answers));
  }

  function keysView(item) {
    const keys = (...names) => names.flatMap((name) => [element("kbd", {}, name), " "]);
    const letters = item.questions.some((id) => questions.get(id).kind === "pairwise");
    return element("p", { class: "keys" }, "Keys: ", ...(letters ? keys("A", "B", "T", "G", "N") : keys("1–9")), "answer, ",
      ...keys("Enter"), "next, ", ...keys("←"), "back.");
  }

  // Brings answers, feedback and the question that keys answer up to date.
  function mark() {
    for (const [i, fieldset] of [...main.querySelectorAll("fieldset")].entries()) {
      const id = shown.questions[i], answer = given.get(id);
      fieldset.classList.toggle("active", i === active && shown.questions.length > 1);
      for (const button of fieldset.querySelectorAll("button")) {
        button.setAttribute("aria-pressed", String(button.dataset.answer === String(answer)));
        button.disabled = Boolean(shown.training) && given.has(id);
      }
      if (shown.training && given.has(id) && !fieldset.querySelector(".feedback")) fieldset.append(feedback(id, answer));
    }
    next.disabled = shown.questions.some((id) => !given.has(id));
  }

  function feedback(id, answer) {
    const wanted = choices(questions.get(id)).find((choice) => choice.answer === shown.expected[id]);
    const right = !wanted || wanted.answer === answer;
    return element("p", { class: right ? "feedback right" : "feedback", role: "status" },
      right ? "✓ Thank you, that is right." : `✗ The expected answer is: ${wanted.label}`);
  }

  // --- what raters do -------------------------------------------------------------------------------------------------

  function choose(index, answer) {
    const question = questions.get(shown.questions[index]);
    if (stopped || (shown.training && given.has(question.id))) return;
    if (given.get(question.id) !== answer) {
      given.set(question.id, answer);
      record(shown, question, answer);
    }
    const open = shown.questions.findIndex((id) => !given.has(id));
    active = open < 0 ? index : open;
    mark();
    main.querySelectorAll("fieldset")[active].scrollIntoView({ block: "nearest" });
  }

  function goNext() {
    if (next.disabled) return status("Please answer first.");
    if (!shown.training) state.at += 1;
    tick();
    save();
    show();
  }

  function goBack() {
    if (back.hidden) return;
    state.at -= 1;
    tick();
    save();
    show();
  }

  function pressed(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || event.repeat || stopped) return;
    const key = event.key.toLowerCase();
    const button = event.target.closest("button");
    if (key === "arrowleft") goBack();
    else if (!shown) return;
    else if (key === "arrowright") goNext();
    else if (key === "enter") {
      if (button && button.getAttribute("aria-pressed") !== "true") return; // the button's own business
      goNext();
    } else {
      const options = choices(questions.get(shown.questions[active]));
      const choice = options.find((option) => option.key === key) || (/^[1-9]$/.test(key) && options[Number(key) - 1]);
      if (!choice) return;
      choose(active, choice.answer);
    }
    event.preventDefault();
  }

  // Another page goes on with the same link, or the server refuses: nothing more can be answered here.
  function stop(message) {
    leaveItem();
    stopped = true;
    document.body.dataset.step = "stopped";
    main.inert = true;
    next.hidden = back.hidden = true;
    status("");
    notify(message);
  }

  next.addEventListener("click", goNext);
  back.addEventListener("click", goBack);
  copy.addEventListener("click", download);
  document.addEventListener("keydown", pressed);
  for (const name of ["focus", "blur", "pagehide"]) window.addEventListener(name, () => { tick(); if (!stopped) save(); });
  document.addEventListener("visibilitychange", () => { tick(); if (!stopped) save(); });
  window.addEventListener("online", () => send());
  window.addEventListener("beforeunload", (event) => { if (served && !stopped && sent < state.ratings.length) event.preventDefault(); });
  // What another page with the same link writes. Older answers of our own, as a reload may still hear of, are no other page's.
  window.addEventListener("storage", ({ key, newValue }) => {
    if (key !== KEY || stopped || !newValue || !document.body.dataset.step) return;
    const theirs = JSON.parse(newValue).ratings, same = state.ratings[theirs.length - 1];
    if (theirs.length && (!same || same.seal !== lastSeal(theirs))) stop("This study is open in another tab. Go on there, or reload this page.");
  });

  load().then(show).then(() => send());
})();
