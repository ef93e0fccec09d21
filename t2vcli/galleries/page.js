"use strict";
// Shows the clips of this page. What comes from clips is put on the page as text, never as HTML.
(() => {
  const $ = (id) => document.getElementById(id);
  const all = JSON.parse($("facts").textContent);
  const count = all.name.length;
  const fieldOf = new Map(all.fields.map(([name, values, which]) => [name, { name, values, which }]));
  const calm = matchMedia("(prefers-reduced-motion: reduce)");
  const byText = new Intl.Collator(undefined, { numeric: true, sensitivity: "base" });
  const HOVER_MS = 120;
  const MOST_BESIDE = 9;

  const valueOf = (field, clip) => {
    const found = fieldOf.get(field);
    return found && found.which[clip] >= 0 ? found.values[found.which[clip]] : undefined;
  };
  const promptOf = (clip) => {
    const prompt = valueOf("prompt", clip);
    return prompt === undefined ? "" : String(prompt);
  };
  const isPicture = (clip) => /\.(gif|webp)$/i.test(all.src[clip]);

  // Making elements

  function make(tag, properties = {}, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(properties)) {
      if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
      else if (name in element) element[name] = value;
      else element.setAttribute(name, value);
    }
    element.append(...children);
    return element;
  }

  const blocks = new Map();
  function posterOf(clip) {
    const number = Math.floor(clip / all.paged);
    if (!blocks.has(number)) {
      const block = $(`posters-${number}`);
      if (!block) return ""; // the page is still being read
      blocks.set(number, JSON.parse(block.textContent));
    }
    const poster = blocks.get(number)[clip % all.paged];
    return poster ? `data:image/jpeg;base64,${poster}` : "";
  }

  const told = $("told");
  let telling = 0;
  function tell(line) {
    const open = document.querySelector("dialog[open]");
    (open || document.body).append(told); // else an open dialog would hide it
    told.textContent = line;
    clearTimeout(telling);
    telling = setTimeout(() => { told.textContent = ""; }, 2500);
  }

  async function copy(text, what) {
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      const area = make("textarea", { value: text, readOnly: true });
      (document.querySelector("dialog[open]") || document.body).append(area);
      area.select();
      const done = document.execCommand("copy");
      area.remove();
      if (!done) { tell("The browser did not let the page copy"); return; }
    }
    tell(`Copied the ${what}`);
  }
  const copyOf = (clip) => all.command[clip] ? [all.command[clip], "command"] : promptOf(clip) ? [promptOf(clip), "prompt"] : [all.name[clip], "name"];

  // Which clips are shown, and in which order

  const chosen = { words: [], filters: [], sort: "name", down: false, page: 0 };
  let shown = [];
  const haystacks = [];

  function haystackOf(clip) {
    haystacks[clip] ??= [all.name[clip], ...["prompt", "negative_prompt", "seed", "preset", "model", "model.source"].map((field) => valueOf(field, clip) ?? "")]
      .join("\n").toLowerCase();
    return haystacks[clip];
  }

  function passes(filter) {
    const found = fieldOf.get(filter.field);
    const wanted = filter.value.toLowerCase();
    const number = Number(filter.value);
    const of = (value) => {
      const text = String(value).toLowerCase();
      if (filter.how === "is") return text === wanted;
      if (filter.how === "not") return text !== wanted;
      if (filter.how === "has") return text.includes(wanted);
      if (typeof value !== "number" || filter.value.trim() === "" || Number.isNaN(number)) return false;
      return filter.how === "least" ? value >= number : value <= number;
    };
    const kept = found.values.map(of);
    return (clip) => found.which[clip] < 0 ? filter.how === "not" : kept[found.which[clip]];
  }

  const ranked = new Map();
  function rankOf(key) {
    if (!ranked.has(key)) {
      const column = key === "name" ? { values: all.name, which: all.name.map((_, clip) => clip) }
        : key === "time" ? { values: all.time.map(Number), which: all.time.map((_, clip) => clip) }
        : fieldOf.get(key.slice(1));
      const order = column.values.map((_, place) => place);
      const kind = (value) => typeof value === "number" ? 0 : 1;
      order.sort((one, other) => {
        const [a, b] = [column.values[one], column.values[other]];
        return kind(a) - kind(b) || (kind(a) ? byText.compare(String(a), String(b)) : a - b);
      });
      const rank = [];
      order.forEach((place, number) => { rank[place] = number; });
      ranked.set(key, column.which.map((place) => place < 0 ? Infinity : rank[place]));
    }
    return ranked.get(key);
  }

  function choose() {
    const tests = [
      ...chosen.filters.map(passes),
      ...chosen.words.map((word) => (clip) => haystackOf(clip).includes(word)),
    ];
    shown = [];
    for (let clip = 0; clip < count; clip += 1) if (tests.every((test) => test(clip))) shown.push(clip);
    const rank = rankOf(chosen.sort);
    const sign = chosen.down ? -1 : 1;
    shown.sort((one, other) => {
      const [a, b] = [rank[one], rank[other]];
      if (a === b) return one - other;
      if (a === Infinity || b === Infinity) return a === Infinity ? 1 : -1; // those without the field come last
      return sign * (a - b);
    });
    chosen.page = 0;
    show();
  }

  // The grid

  const grid = $("grid");
  const picked = new Set();
  const cardOf = new Map();

  function show() {
    stopPlaying();
    const pages = Math.max(1, Math.ceil(shown.length / all.paged));
    const begin = chosen.page * all.paged;
    const here = shown.slice(begin, begin + all.paged);
    cardOf.clear();
    grid.replaceChildren(...here.map(cardFor));
    if (grid.firstChild) grid.firstChild.tabIndex = 0;
    const whole = count.toLocaleString("en");
    const part = shown.length === count ? whole : `${shown.length.toLocaleString("en")} of ${whole}`;
    const where = pages > 1 ? `, ${(begin + 1).toLocaleString("en")} to ${(begin + here.length).toLocaleString("en")} here` : "";
    $("count").textContent = `${part} ${count === 1 ? "clip" : "clips"}${where}`;
    $("nothing").hidden = shown.length > 0;
    $("pages").hidden = pages === 1;
    $("pages").replaceChildren(
      make("button", { type: "button", disabled: chosen.page === 0, onclick: () => turn(-1) }, "Before"),
      `page ${chosen.page + 1} of ${pages}`,
      make("button", { type: "button", disabled: chosen.page === pages - 1, onclick: () => turn(1) }, "Next"),
    );
  }

  function turn(by) {
    const page = chosen.page + by;
    if (page < 0 || page * all.paged >= shown.length) return;
    chosen.page = page;
    show();
    scrollTo(0, 0);
    if (grid.firstChild) grid.firstChild.focus({ preventScroll: true });
  }

  function cardFor(clip) {
    const poster = posterOf(clip);
    const prompt = promptOf(clip);
    const seed = valueOf("seed", clip);
    const hole = make("div", { className: "hole" });
    if (poster) {
      hole.append(make("img", { className: smallness(clip), alt: "", loading: "lazy", decoding: "async", src: poster }));
    } else {
      hole.append(make("span", { className: "why" }, all.problem[clip] || "no picture"));
    }
    const box = make("input", {
      type: "checkbox", tabIndex: -1, checked: picked.has(clip), title: "Compare", "aria-label": `Compare ${all.name[clip]}`,
      onchange: () => pick(clip, box.checked),
    });
    const below = seed === undefined ? all.name[clip] : `${all.name[clip]} · seed ${seed}`;
    const card = make(
      "article",
      { className: picked.has(clip) ? "card picked" : "card", role: "listitem", tabIndex: -1, "aria-label": prompt || all.name[clip] },
      hole,
      make("div", { className: "words" },
        make("p", { title: prompt }, prompt || (all.problem[clip] ? "cannot be read" : "no recipe inside")),
        make("div", { className: "row" }, make("span", { title: below }, below), make("label", {}, box))),
    );
    card.dataset.clip = clip;
    cardOf.set(clip, card);
    return card;
  }

  const smallness = (clip) => Math.max(all.width[clip], all.height[clip]) <= 128 ? "small" : "";

  function pick(clip, wanted) {
    if (wanted && picked.size >= MOST_BESIDE && !picked.has(clip)) {
      tell(`At most ${MOST_BESIDE} clips can be compared`);
      wanted = false;
    }
    if (wanted) picked.add(clip);
    else picked.delete(clip);
    const card = cardOf.get(clip);
    if (card) {
      card.classList.toggle("picked", wanted);
      card.querySelector("input").checked = wanted;
    }
    picking();
  }

  function picking() {
    const button = $("compare");
    button.disabled = picked.size < 2;
    button.classList.toggle("strong", picked.size > 1);
    button.textContent = picked.size ? `Compare ${picked.size}` : "Compare";
    button.title = picked.size < 2 ? "Pick two clips or more first" : "";
    $("unpick").hidden = picked.size === 0;
  }

  // One clip plays at a time

  let playing = null; // { clip, element }
  let waiting = 0;

  function player(clip, properties) {
    const element = isPicture(clip)
      ? make("img", { alt: "", src: all.src[clip] })
      : make("video", { muted: true, loop: true, playsInline: true, preload: "auto", src: all.src[clip], ...properties });
    if (smallness(clip)) element.classList.add("small");
    return element;
  }

  const unplayable = (clip) => `${all.name[clip]} cannot be played: the file is not beside this page any more, or this browser does not play its kind`;

  function play(clip) {
    const card = cardOf.get(clip);
    if (!card || (playing && playing.clip === clip) || all.problem[clip] && !posterOf(clip)) return;
    stopPlaying();
    const element = player(clip, { autoplay: true });
    element.addEventListener("error", () => {
      element.remove();
      card.querySelector(".hole").replaceChildren(make("span", { className: "why" }, unplayable(clip)));
    });
    card.querySelector(".hole").append(element);
    playing = { clip, element };
  }

  function stopPlaying() {
    clearTimeout(waiting);
    if (!playing) return;
    release(playing.element);
    playing.element.remove();
    playing = null;
  }

  function release(element) {
    if (element.tagName !== "VIDEO") return;
    element.pause();
    element.removeAttribute("src");
    element.load();
  }

  const clipAt = (target) => {
    const card = target instanceof Element ? target.closest(".card") : null;
    return card ? Number(card.dataset.clip) : -1;
  };

  grid.addEventListener("pointerover", (event) => {
    const clip = clipAt(event.target);
    if (event.pointerType !== "mouse" || calm.matches || clip < 0 || (playing && playing.clip === clip)) return;
    clearTimeout(waiting);
    waiting = setTimeout(play, HOVER_MS, clip);
  });
  grid.addEventListener("pointerout", (event) => {
    if (event.pointerType === "mouse" && clipAt(event.target) !== clipAt(event.relatedTarget) && !calm.matches) stopPlaying();
  });
  grid.addEventListener("click", (event) => {
    const clip = clipAt(event.target);
    if (clip < 0 || event.target.closest("label")) return;
    if (event.target.closest(".hole") && calm.matches && !(playing && playing.clip === clip)) play(clip);
    else open(clip);
  });
  grid.addEventListener("focusin", (event) => {
    const card = event.target.closest(".card");
    const before = grid.querySelector('.card[tabindex="0"]');
    if (before && before !== card) before.tabIndex = -1;
    card.tabIndex = 0;
  });

  // One clip, large, with its recipe

  const dialog = $("clip");
  let opened = -1;

  function open(clip) {
    stopPlaying();
    opened = clip;
    const big = player(clip, { controls: true, autoplay: !calm.matches });
    big.classList.add("big");
    if (!isPicture(clip) && posterOf(clip)) big.poster = posterOf(clip);
    big.addEventListener("error", () => tell(unplayable(clip)));
    const place = shown.indexOf(clip);
    const prompt = promptOf(clip);
    const command = all.command[clip];
    const rows = [
      ["file.bytes", all.size[clip].toLocaleString("en")],
      ["file.written", new Date(Number(all.time[clip]) / 1e6).toLocaleString()],
      ...all.fields.filter(([name, , which]) => name !== "prompt" && which[clip] >= 0).map(([name, values, which]) => [name, values[which[clip]]]),
    ];
    const facts = make("div", {},
      make("h2", {}, all.name[clip]),
      ...(all.problem[clip] ? [make("p", {}, all.problem[clip])] : []),
      ...(prompt ? [make("p", { className: "prompt" }, prompt)] : []),
      ...(command ? [make("code", {}, command)] : []),
      table(rows.map(([name, value]) => [name, String(value)])),
      ...(fieldOf.size && valueOf("command", clip) === undefined && !all.problem[clip] ? [make("p", {}, "No recipe inside: t2v did not make it, or it was encoded again since.")] : []),
    );
    const old = dialog.querySelector("video");
    if (old) release(old);
    dialog.replaceChildren(
      make("div", { className: "bar" },
        make("button", { type: "button", disabled: place <= 0, onclick: () => step(-1) }, "← Before"),
        make("button", { type: "button", disabled: place < 0 || place === shown.length - 1, onclick: () => step(1) }, "Next →"),
        ...(command ? [make("button", { type: "button", className: "strong", title: "For a shell in the folder of the clips", onclick: () => copy(command, "command") }, "Copy the command")] : []),
        ...(prompt ? [make("button", { type: "button", onclick: () => copy(prompt, "prompt") }, "Copy the prompt")] : []),
        make("button", { type: "button", onclick: () => copy(all.name[clip], "name") }, "Copy the name"),
        make("button", { type: "button", "aria-pressed": String(picked.has(clip)), onclick: (event) => { pick(clip, !picked.has(clip)); event.target.setAttribute("aria-pressed", String(picked.has(clip))); event.target.textContent = pickText(clip); } }, pickText(clip)),
        make("a", { href: all.src[clip] }, "The file"),
        make("span", { className: "gap" }),
        make("button", { type: "button", onclick: () => dialog.close() }, "Close")),
      make("div", { className: "one" }, big, facts),
    );
    if (!dialog.open) dialog.showModal();
    dialog.focus();
    dialog.scrollTop = 0;
  }
  const pickText = (clip) => picked.has(clip) ? "Picked to compare" : "Pick to compare";

  function step(by) {
    const place = shown.indexOf(opened) + by;
    if (place >= 0 && place < shown.length) open(shown[place]);
  }

  function table(rows, head) {
    const cells = (row) => [make("th", { scope: "row" }, row[0]), ...row.slice(1).map((text) => make("td", {}, text))];
    const body = rows.map((row) => make("tr", {}, ...cells(row)));
    return make("table", {}, ...(head ? [make("tr", {}, ...head.map((text) => make("th", { scope: "col" }, text)))] : []), ...body);
  }

  dialog.addEventListener("close", () => {
    dialog.querySelectorAll("video").forEach(release);
    dialog.replaceChildren();
    showPageOf(opened);
    const card = cardOf.get(opened);
    if (card) card.focus();
  });

  function showPageOf(clip) {
    const place = shown.indexOf(clip);
    const page = Math.floor(place / all.paged);
    if (place >= 0 && page !== chosen.page) { chosen.page = page; show(); }
  }

  // Several clips, in step

  const side = $("side");
  let together = null;

  function compare() {
    if (picked.size < 2) { tell("Pick two clips or more first (c)"); return; }
    stopPlaying();
    const clips = [...picked];
    const videos = [];
    const figures = clips.map((clip) => {
      const element = player(clip, { loop: false });
      if (element.tagName === "VIDEO") videos.push({ clip, element });
      element.addEventListener("error", () => tell(unplayable(clip)));
      return make("figure", {}, element, make("figcaption", {}, all.name[clip]));
    });
    together = videos.length ? inStep(videos) : null;
    const differing = all.fields.filter(([, , which]) => clips.some((clip) => which[clip] !== which[clips[0]]));
    const rows = differing.map(([name, values, which]) => [name, ...clips.map((clip) => which[clip] < 0 ? "" : String(values[which[clip]]))]);
    side.replaceChildren(
      make("div", { className: "bar" }, ...(together ? together.controls : []), make("span", { className: "gap" }),
        make("button", { type: "button", onclick: () => side.close() }, "Close")),
      make("div", { className: "beside" }, ...figures),
      make("h2", {}, rows.length ? "What differs" : "Their recipes are the same"),
      make("div", { className: "scroll" }, ...(rows.length ? [table(rows, ["", ...clips.map((clip) => all.name[clip])])] : [])),
    );
    side.showModal();
    side.focus();
    if (together && !calm.matches) together.play();
  }

  // The longest of them leads. Those that end before it stay at their last frame; then all begin again.
  function inStep(videos) {
    const lasts = (clip) => all.frames[clip] / (all.fps[clip] || 1);
    const lead = videos.reduce((best, each) => lasts(each.clip) > lasts(best.clip) ? each : best);
    const fps = all.fps[lead.clip] || 25;
    const frames = Math.max(1, all.frames[lead.clip]);
    let running = false;
    let asked = 0;
    const toggle = make("button", { type: "button", className: "strong", onclick: () => running ? pause() : play() }, "Play");
    const place = make("input", { type: "range", min: 0, max: frames - 1, step: 1, value: 0, "aria-label": "Frame", oninput: () => { pause(); seek(Number(place.value)); } });
    const where = make("output", {}, `frame 1 of ${frames}`);
    const frameAt = (seconds) => Math.min(frames - 1, Math.floor(seconds * fps + 1e-3));
    const tellWhere = (frame) => { place.value = String(frame); where.textContent = `frame ${frame + 1} of ${frames}`; };

    function setAll(seconds) {
      for (const { clip, element } of videos) {
        const end = Math.max(0, lasts(clip) - 0.5 / (all.fps[clip] || 25));
        element.currentTime = Math.min(seconds, end);
      }
    }
    function seek(frame) {
      setAll((frame + 0.5) / fps); // in the middle of the frame, so that rounding shows no other
      tellWhere(frame);
    }
    function play() {
      running = true;
      toggle.textContent = "Pause";
      if (lead.element.ended || frameAt(lead.element.currentTime) === frames - 1) setAll(0);
      for (const { element } of videos) element.play().catch(() => {});
      asked = requestAnimationFrame(follow);
    }
    function pause() {
      if (running) for (const { element } of videos) element.pause();
      running = false;
      toggle.textContent = "Play";
      cancelAnimationFrame(asked);
    }
    function follow() {
      if (!running) return;
      const now = lead.element.currentTime;
      if (lead.element.ended) {
        setAll(0);
        for (const { element } of videos) element.play().catch(() => {});
      } else {
        for (const { clip, element } of videos) {
          const apart = Math.abs(element.currentTime - now);
          if (element !== lead.element && now < lasts(clip) && apart > 1.5 / fps && !element.seeking) element.currentTime = now;
        }
      }
      tellWhere(frameAt(now));
      asked = requestAnimationFrame(follow);
    }
    function by(frameCount) {
      pause();
      const now = Number(place.value);
      seek((now + frameCount + frames) % frames);
    }
    const controls = [
      toggle,
      make("button", { type: "button", title: "A frame back (,)", onclick: () => by(-1) }, "−1"),
      make("button", { type: "button", title: "A frame on (.)", onclick: () => by(1) }, "+1"),
      place, where,
    ];
    return { controls, play, pause, by, toggle: () => running ? pause() : play() };
  }

  side.addEventListener("close", () => {
    if (together) together.pause();
    together = null;
    side.querySelectorAll("video").forEach(release);
    side.replaceChildren();
  });

  // The tools

  let typing = 0;
  $("search").addEventListener("input", () => {
    clearTimeout(typing);
    typing = setTimeout(() => {
      chosen.words = $("search").value.toLowerCase().split(/\s+/).filter(Boolean);
      choose();
    }, 80);
  });
  $("tools").addEventListener("submit", (event) => event.preventDefault());

  const several = all.fields.filter(([, values, which]) => values.length > 1 || which.includes(-1)).map(([name]) => name);
  $("sort").append(
    make("option", { value: "name" }, "name"),
    make("option", { value: "time" }, "time written"),
    ...several.map((name) => make("option", { value: `.${name}` }, name)),
  );
  $("sort").addEventListener("change", () => { chosen.sort = $("sort").value; choose(); });
  const direction = () => {
    $("direction").textContent = chosen.down ? "↓" : "↑";
    $("direction").setAttribute("aria-label", chosen.down ? "Falling; sort rising" : "Rising; sort falling");
  };
  $("direction").addEventListener("click", () => { chosen.down = !chosen.down; direction(); choose(); });
  direction();

  const sized = () => document.documentElement.style.setProperty("--size", `${$("size").value}px`);
  $("size").addEventListener("input", sized);

  const names = [...several, ...all.fields.map(([name]) => name).filter((name) => !several.includes(name))];
  $("filter").hidden = names.length === 0;
  $("filter-field").append(...names.map((name) => make("option", { value: name }, name)));
  const suggest = () => {
    const found = fieldOf.get($("filter-field").value);
    const values = found ? found.values.map(String).filter((text) => text.length < 200) : [];
    $("filter-values").replaceChildren(...[...new Set(values)].sort(byText.compare).slice(0, 200).map((value) => make("option", { value })));
  };
  $("filter-field").addEventListener("change", () => { $("filter-value").value = ""; suggest(); });
  suggest();

  const HOW = { is: "=", not: "≠", has: "contains", least: "≥", most: "≤" };
  function addFilter() {
    const filter = { field: $("filter-field").value, how: $("filter-how").value, value: $("filter-value").value };
    if (!fieldOf.has(filter.field)) return;
    if ((filter.how === "least" || filter.how === "most") && (filter.value.trim() === "" || Number.isNaN(Number(filter.value)))) {
      tell("“at least” and “at most” take a number");
      return;
    }
    chosen.filters.push(filter);
    $("filter-value").value = "";
    filtered();
  }
  function filtered() {
    $("filters").replaceChildren(...chosen.filters.map((filter) => make(
      "button",
      { type: "button", className: "filter", title: "Take the filter away", onclick: () => { chosen.filters = chosen.filters.filter((each) => each !== filter); filtered(); } },
      `${filter.field} ${HOW[filter.how]} ${filter.value} ×`,
    )));
    choose();
  }
  $("filter-add").addEventListener("click", addFilter);
  $("filter-value").addEventListener("keydown", (event) => { if (event.key === "Enter") { event.preventDefault(); addFilter(); } });
  $("all").addEventListener("click", () => {
    $("search").value = "";
    chosen.words = [];
    chosen.filters = [];
    filtered();
  });
  $("compare").addEventListener("click", compare);
  $("unpick").addEventListener("click", () => [...picked].forEach((clip) => pick(clip, false)));
  $("keys").addEventListener("click", () => $("help").showModal());

  // Keys

  const takesText = (target) => target instanceof Element && target.closest("input:not([type=checkbox]):not([type=range]), select, textarea") !== null;
  const isPressed = (target) => target instanceof Element && target.closest("button, a, input") !== null;

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || takesText(event.target)) return;
    const handled = side.open ? keyInSide(event) : dialog.open ? keyInClip(event) : $("help").open ? false : keyInGrid(event);
    if (handled) event.preventDefault();
  });

  function keyInSide(event) {
    if (!together) return false;
    if (event.key === ",") together.by(-1);
    else if (event.key === ".") together.by(1);
    else if (event.key === " " && !isPressed(event.target)) together.toggle();
    else return false;
    return true;
  }

  function keyInClip(event) {
    const free = !(event.target instanceof HTMLMediaElement);
    const video = dialog.querySelector("video");
    if (event.key === "ArrowLeft" && free) step(-1);
    else if (event.key === "ArrowRight" && free) step(1);
    else if (event.key === " " && free && video && !isPressed(event.target)) { if (video.paused) video.play().catch(() => {}); else video.pause(); }
    else if (event.key === "c") { pick(opened, !picked.has(opened)); tell(picked.has(opened) ? "Picked" : "Not picked any more"); }
    else if (event.key === "y") copy(...copyOf(opened));
    else return false;
    return true;
  }

  function keyInGrid(event) {
    if (event.key === "/") { $("search").focus(); return true; }
    if (event.key === "?") { $("help").showModal(); return true; }
    if (event.key === "v") { compare(); return true; }
    if (event.key === "[") { turn(-1); return true; }
    if (event.key === "]") { turn(1); return true; }
    const card = event.target instanceof Element ? event.target.closest(".card") : null;
    if (!card || event.target !== card) return false;
    const clip = Number(card.dataset.clip);
    const columns = getComputedStyle(grid).gridTemplateColumns.split(" ").length;
    const moves = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns };
    if (event.key in moves) {
      const cards = grid.children;
      const next = cards[Array.prototype.indexOf.call(cards, card) + moves[event.key]];
      if (next) { stopPlaying(); next.focus(); }
    } else if (event.key === "Home" || event.key === "End") {
      (event.key === "Home" ? grid.firstChild : grid.lastChild).focus();
    } else if (event.key === "Enter") open(clip);
    else if (event.key === " ") { if (playing && playing.clip === clip) stopPlaying(); else play(clip); }
    else if (event.key === "c") pick(clip, !picked.has(clip));
    else if (event.key === "y") copy(...copyOf(clip));
    else return false;
    return true;
  }

  // The beginning. The frame has the shape that most clips have, so that little room is wasted.

  const shapes = new Map();
  all.width.forEach((width, clip) => {
    const shape = width ? `${width} / ${all.height[clip]}` : "";
    if (shape) shapes.set(shape, (shapes.get(shape) || 0) + 1);
  });
  const usual = [...shapes].sort((one, other) => other[1] - one[1])[0];
  if (usual) {
    const [width, height] = usual[0].split(" / ").map(Number);
    document.documentElement.style.setProperty("--shape", String(Math.min(3, Math.max(0.5, width / height))));
  }
  sized();
  picking();
  choose();
})();
