"use strict";
(() => {
  const root = document.documentElement;
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const colour = (name) => getComputedStyle(root).getPropertyValue(name).trim();

  // Plots take their text and grid colours from the page
  const themed = () => {
    const axis = { gridcolor: colour("--grid"), linecolor: colour("--line"), showline: true, ticks: "outside", tickcolor: colour("--line") };
    return {
      font: { color: colour("--ink"), family: "system-ui, sans-serif", size: 12 },
      hoverlabel: { bgcolor: colour("--panel"), bordercolor: colour("--line"), font: { color: colour("--ink") } },
      xaxis: axis, yaxis: axis,
    };
  };
  const merged = (layout) => {
    const theme = themed();
    return { ...layout, ...theme, xaxis: { ...layout.xaxis, ...theme.xaxis }, yaxis: { ...layout.yaxis, ...theme.yaxis } };
  };
  // nothing is uploaded anywhere: plotly.js would offer its company's cloud
  const config = {
    responsive: true, displaylogo: false, showSendToCloud: false, plotlyServerURL: "",
    modeBarButtonsToRemove: ["lasso2d", "select2d", "autoScale2d"],
  };
  // plotly.js travels compressed
  const unpack = async () => {
    const bytes = Uint8Array.from(atob(document.getElementById("plotly").textContent), (letter) => letter.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    const script = document.createElement("script");
    script.textContent = await new Response(stream).text();
    document.head.append(script);
  };
  const ready = unpack();
  const draw = () => ready.then(() => Promise.all(figures.map(({ id, data, layout }) => Plotly.react(id, data, merged(layout), config))));
  draw().then(() => { root.dataset.drawn = "yes"; }, (error) => {
    document.getElementById("old").hidden = false;
    throw error;
  });

  // Light and dark: the system's choice until the reader makes another
  const store = { get: () => { try { return localStorage.getItem("vae_lab_theme"); } catch { return null; } },
    set: (value) => { try { localStorage.setItem("vae_lab_theme", value); } catch { /* a file without storage */ } } };
  const system = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);
  if (store.get()) { root.dataset.theme = store.get(); draw(); }
  document.getElementById("theme").addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    store.set(root.dataset.theme);
    draw();
  });
  system.addEventListener("change", draw);
  let before;
  addEventListener("beforeprint", () => { before = root.dataset.theme; root.dataset.theme = "light"; draw(); });
  addEventListener("afterprint", () => { if (before) root.dataset.theme = before; else delete root.dataset.theme; draw(); });

  // One legend switches a variant in all plots of its section
  for (const part of document.querySelectorAll(".part")) {
    const buttons = [...part.querySelectorAll(".legend button")];
    const ids = new Set([...part.querySelectorAll(".plot")].map((plot) => plot.id));
    const apply = () => {
      const hidden = new Set(buttons.filter((b) => b.getAttribute("aria-pressed") === "false").map((b) => Number(b.dataset.group)));
      for (const figure of figures.filter(({ id }) => ids.has(id))) {
        for (const trace of figure.data) trace.visible = !(trace.meta && hidden.has(trace.meta.group));
        Plotly.restyle(figure.id, { visible: figure.data.map((trace) => trace.visible) });
      }
    };
    for (const button of buttons) {
      button.addEventListener("click", () => {
        button.setAttribute("aria-pressed", String(button.getAttribute("aria-pressed") === "false"));
        apply();
      });
      button.addEventListener("dblclick", () => {
        const alone = buttons.every((b) => b === button || b.getAttribute("aria-pressed") === "false");
        for (const b of buttons) b.setAttribute("aria-pressed", String(alone || b === button));
        apply();
      });
    }
  }

  // Tables sort by a click on a column's name; empty cells stay last
  const key = (cell) => {
    const text = cell.dataset.sort ?? cell.textContent.trim();
    const plain = text.replace(/\u2212/g, "-").replace(/,/g, "").replace(/^[<>=\s]+/, "");
    const value = parseFloat(plain);
    return { empty: text === "", number: /^[-+]?(\d|\.\d)/.test(plain) && !Number.isNaN(value) ? value : null, text };
  };
  const order = new Intl.Collator(undefined, { numeric: true });
  const compare = (a, b) => (a.number !== null && b.number !== null ? a.number - b.number : order.compare(a.text, b.text));
  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = head.textContent;
      head.replaceChildren(button);
      button.addEventListener("click", () => {
        const up = head.getAttribute("aria-sort") !== "ascending";
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", up ? "ascending" : "descending");
        const rows = [...table.tBodies[0].rows].map((row) => [key(row.cells[column]), row]);
        rows.sort(([a], [b]) => (a.empty || b.empty ? a.empty - b.empty : (up ? 1 : -1) * compare(a, b)));
        table.tBodies[0].append(...rows.map(([, row]) => row));
      });
    });
  }

  // Every word must occur somewhere in a row
  const search = document.getElementById("search");
  const rows = [...document.querySelectorAll("#runs-table tbody tr")];
  search.addEventListener("input", () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let count = 0;
    for (const row of rows) {
      row.hidden = !words.every((word) => row.textContent.toLowerCase().includes(word));
      count += !row.hidden;
    }
    document.getElementById("found").textContent = `${count} of ${rows.length} runs`;
  });
})();
