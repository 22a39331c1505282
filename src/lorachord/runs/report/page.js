"use strict";
(() => {
  const root = document.documentElement;
  const drawings = JSON.parse(document.getElementById("drawings").textContent);
  const prefersDark = window.matchMedia("(prefers-color-scheme: dark)");
  const button = document.getElementById("theme");
  const narrow = () => window.innerWidth < 640;

  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : prefersDark.matches);

  // The colours of the page, which Plotly does not read from the style sheet.
  const themed = (layout, count, room) => {
    const style = getComputedStyle(root);
    const [text, ground, lines] = ["--text", "--ground", "--lines"].map((name) => style.getPropertyValue(name).trim());
    // Names below the columns of a map stand upright where they have no room side by side.
    const names = layout.xaxis.ticktext ?? [];
    const fit = Math.max(0, ...names.map((name) => name.length)) * 7 * names.length < room - 190;
    const turned = layout.xaxis.tickangle === 0 && !fit ? { tickangle: -90 } : {};
    const axis = (own) => ({ ...own, gridcolor: lines, zerolinecolor: lines });
    // On a narrow page each name of a legend has a line of its own.
    const legend = narrow() && layout.showlegend ? 15 * count : 0;
    return {
      ...layout,
      height: layout.height + legend + (turned.tickangle ? 60 : 0),
      font: { ...layout.font, color: text, size: narrow() ? 11 : 12 },
      paper_bgcolor: ground,
      plot_bgcolor: ground,
      xaxis: { ...axis(layout.xaxis), ...turned },
      yaxis: axis(layout.yaxis),
    };
  };

  const plots = [];
  for (const figure of document.querySelectorAll("[data-drawing]")) {
    const place = figure.querySelector(".plot");
    const drawing = drawings[place.id];
    const own = { place, drawing, data: drawing.data };
    const draw = () => Plotly.react(place, own.data, themed(drawing.layout, own.data.length, place.clientWidth), { displayModeBar: false, responsive: true });
    own.draw = draw;
    plots.push(own);
    draw();
    const slider = figure.querySelector("input[type=range]");
    if (slider) {
      slider.disabled = false;
      slider.addEventListener("input", () => {
        const at = Number(slider.value);
        const label = drawing.frames.labels[at];
        own.data = [{ ...drawing.data[0], z: drawing.frames.values[at] }, ...drawing.data.slice(1)];
        figure.querySelector("output").textContent = label;
        slider.setAttribute("aria-valuetext", label);
        draw();
      });
    }
    const save = figure.querySelector(".save");
    save.hidden = false;
    save.addEventListener("click", () => {
      const { width, height } = place.getBoundingClientRect();
      Plotly.downloadImage(place, { format: "png", width, height, scale: 3, filename: place.id });
    });
  }

  const redraw = () => {
    button.textContent = isDark() ? "Light" : "Dark";
    button.setAttribute("aria-label", `Change to the ${isDark() ? "light" : "dark"} theme`);
    plots.forEach((own) => own.draw());
  };
  button.hidden = false;
  button.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    redraw();
  });
  prefersDark.addEventListener("change", redraw);
  window.matchMedia("(max-width: 639px)").addEventListener("change", redraw);
  redraw();
})();
