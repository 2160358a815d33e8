"use strict";
(() => {
  const data = JSON.parse(document.getElementById("samples").textContent);
  const viewer = document.getElementById("viewer");
  const PAGE = 25;

  // Texts of data and models enter the page here only, as text.
  const element = (tag, classes, text) => {
    const made = document.createElement(tag);
    if (classes) made.className = classes;
    if (text !== undefined) made.textContent = text;
    return made;
  };
  const add = (parent, ...children) => {
    parent.append(...children.filter(Boolean));
    return parent;
  };

  const figure = (part, alt) => {
    const made = element("figure", part.c ? "chosen" : "");
    if (part.x) made.append(element("span", "gap", part.x));
    else {
      const image = element("img");
      image.src = data.images[part.i];
      image.alt = alt;
      made.append(image);
    }
    if (part.n) made.append(element("figcaption", "", part.n));
    return made;
  };
  const part = (one, alt) => {
    if (typeof one !== "string") return figure(one, alt);
    const made = element("p", "text", one);
    made.dir = "auto";
    return made;
  };
  const block = (one) =>
    add(element("div", "block"), element("h5", "", one.h), add(element("div", "parts"), ...one.p.map((each) => part(each, one.h))));

  const several = (set) => set.runs.length > 1;
  const chips = (set, sample) => {
    const made = element("span", "chips");
    sample.answers.forEach((answer, place) => {
      if (!answer) return;
      const status = set.statuses[answer.s];
      const text = status === "right" || status === "wrong" ? status : "t" in answer ? `${status === "scored" ? "" : status} ${answer.t}`.trim() : status;
      const chip = element("span", `chip s${answer.s}`, several(set) ? `${set.runs[place].label} ${text}` : text);
      chip.title = `${set.runs[place].model}: ${status}`;
      made.append(chip);
    });
    return made;
  };
  const opened = (set, sample) => {
    const made = add(element("div", "columns"), add(element("div"), ...sample.blocks.map(block)));
    sample.answers.forEach((answer, place) => {
      if (!answer) return;
      const run = set.runs[place];
      const column = element("div");
      if (several(set)) column.append(add(element("p", "chips"), element("span", "chip run", run.label), element("span", "soft", ` ${run.model}`)));
      made.append(add(column, ...answer.blocks.map(block)));
    });
    return made;
  };
  const row = (set, sample) => {
    const made = element("details", "sample");
    const text = element("span", "line");
    add(text, element("span", "title", sample.title));
    if (!set.gallery) {
      const replies = sample.answers.map((answer, place) => answer && (several(set) ? `${set.runs[place].label} ${answer.r}` : answer.r)).filter(Boolean);
      for (const reply of new Set(replies)) text.append(element("span", "reply", reply));
    }
    const images = element("span", "lead");
    sample.lead.forEach((one) => images.append(figure(one, "")));
    add(made, add(element("summary"), images, text, add(element("span", "right"), chips(set, sample), element("span", "code", sample.id))));
    made.addEventListener("toggle", () => {
      if (made.open && made.childElementCount === 1) made.append(opened(set, sample));
    });
    return made;
  };

  // --- which samples, in which order ---------------------------------------------------------------------------------

  const scores = (sample, run) =>
    sample.answers.filter((answer, place) => answer && (run < 0 || place === run)).map((answer) => answer.v).filter((value) => value !== undefined);
  const disagree = (sample) => new Set(sample.answers.filter(Boolean).map((answer) => (answer.v === undefined ? answer.s : `=${answer.v}`))).size > 1;
  const haystack = (sample) => {
    if (!sample.search) {
      const texts = (blocks) => blocks.flatMap((one) => one.p.filter((each) => typeof each === "string"));
      sample.search = [sample.id, sample.title, ...texts(sample.blocks), ...sample.answers.filter(Boolean).flatMap((answer) => [answer.r, ...texts(answer.blocks)])].join("\n").toLowerCase();
    }
    return sample.search;
  };
  const ranked = (samples, run, sign) => {
    const mean = (sample) => {
      const found = scores(sample, run);
      return found.length ? (sign * found.reduce((a, b) => a + b, 0)) / found.length : Infinity;
    };
    return samples.map((sample) => [mean(sample), sample]).sort((a, b) => a[0] - b[0]);
  };

  const choice = (label, options) => {
    const made = element("label", "", label);
    const select = element("select");
    for (const [value, text] of options) {
      const option = element("option", "", text);
      option.value = value;
      select.append(option);
    }
    made.append(select);
    return [made, select];
  };

  const show = (set) => {
    const tools = element("form", "tools");
    tools.addEventListener("submit", (event) => event.preventDefault());
    const count = (test) => set.samples.filter(test).length;
    const statuses = set.statuses.map((name, place) => [place, name, count((sample) => sample.answers.some((answer) => answer && answer.s === place))]);
    const filters = [["", `all (${set.samples.length})`], ...statuses.filter((one) => one[2]).map(([place, name, n]) => [place, `${name} (${n})`])];
    if (several(set)) filters.push(["disagree", `runs disagree (${count(disagree)})`]);
    const [statusLabel, status] = choice("show", filters);
    const [runLabel, run] = choice("of run", [[-1, "any"], ...set.runs.map((one, place) => [place, `${one.label} ${one.model}`])]);
    const [groupLabel, group] = choice("group", [["", "all"], ...set.groups.map((name, place) => [place, name]).sort((a, b) => (a[1] < b[1] ? -1 : 1))]);
    const orders = [["", "errors first, then random"]];
    if (new Set(set.samples.flatMap((sample) => scores(sample, -1))).size > 1) orders.push(["1", `lowest ${set.column} first`], ["-1", `highest ${set.column} first`]);
    if (!statuses[statuses.length - 1][2]) orders[0][1] = "random";
    const [orderLabel, order] = choice("order", orders);
    const searchLabel = element("label", "", "search");
    const search = element("input");
    search.type = "search";
    search.placeholder = "prompt, reply, reference, id";
    searchLabel.append(search);
    add(tools, statusLabel, several(set) && runLabel, set.groups.length > 0 && groupLabel, orders.length > 1 && orderLabel, searchLabel);

    const said = element("p", "soft");
    said.setAttribute("role", "status");
    const list = element("div", set.gallery ? "list gallery" : "list");
    const pager = element("p", "pager");
    let found = [];
    let page = 0;
    const button = (text, step) => {
      const made = element("button", "", text);
      made.type = "button";
      made.addEventListener("click", () => {
        page += step;
        draw();
        tools.scrollIntoView();
      });
      return made;
    };
    const [before, after, place] = [button("Previous", -1), button("Next", 1), element("span", "soft")];
    add(pager, before, place, after);
    const draw = () => {
      const start = page * PAGE;
      list.replaceChildren(...found.slice(start, start + PAGE).map((sample) => row(set, sample)));
      before.disabled = page === 0;
      after.disabled = start + PAGE >= found.length;
      pager.hidden = found.length <= PAGE;
      place.textContent = ` ${start + 1} to ${Math.min(start + PAGE, found.length)} of ${found.length} `;
    };
    const update = () => {
      const chosen = Number(run.value);
      const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
      found = set.samples.filter(
        (sample) =>
          (status.value === "" ||
            (status.value === "disagree" ? disagree(sample) : sample.answers.some((answer, k) => answer && answer.s === Number(status.value) && (chosen < 0 || k === chosen)))) &&
          (chosen < 0 || sample.answers[chosen]) &&
          (group.value === "" || sample.groups.includes(Number(group.value))) &&
          words.every((word) => haystack(sample).includes(word))
      );
      let tied = "";
      if (order.value) {
        const pairs = ranked(found, chosen, Number(order.value));
        const ties = pairs.filter((pair) => pair[0] === pairs[0][0] && pair[0] !== Infinity).length;
        if (ties > 1) tied = `; the first ${ties} tie, and are in no order`;
        found = pairs.map((pair) => pair[1]);
      }
      page = 0;
      said.textContent = `${found.length.toLocaleString("en")} of ${set.samples.length.toLocaleString("en")} samples${tied}. This page holds ${set.part}.`;
      draw();
    };
    for (const one of [status, run, group, order]) one.addEventListener("change", update);
    search.addEventListener("input", update);
    showDisagreement = () => {
      status.value = "disagree";
      update();
    };
    body.replaceChildren(tools, said, list, pager);
    update();
  };

  let showDisagreement = () => {};
  for (const link of document.querySelectorAll("a.disagree")) link.addEventListener("click", () => showDisagreement());

  const body = element("div");
  if (data.sets.length > 1) {
    const tabs = element("div", "tabs");
    data.sets.forEach((set) => {
      const tab = element("button", "", set.title);
      tab.type = "button";
      tab.addEventListener("click", () => {
        for (const other of tabs.children) other.setAttribute("aria-pressed", String(other === tab));
        show(set);
      });
      tabs.append(tab);
    });
    add(viewer, tabs, body);
    tabs.firstChild.click();
  } else {
    viewer.append(body);
    if (data.sets.length) show(data.sets[0]);
  }
  document.getElementById("static").remove();
  viewer.hidden = false;
})();
