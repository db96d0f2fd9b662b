// Hovering a chart tells the day; choosing one shows its picture large. Everything is readable without this.
"use strict";
(() => {
  const days = JSON.parse(document.getElementById("days").textContent);
  const place = new Map(days.map((day, index) => [day.day, index]));
  const tip = document.getElementById("tip");
  const box = document.getElementById("large");
  const percent = (share) => (share === null ? "no number" : (100 * share).toFixed(1) + "\u202f%");
  const source = (day) => document.querySelector(`.sheet [data-day="${day}"] img`)?.src;

  const tell = (day) => {
    const lines = [["b", day.day]];
    if (day.cloud !== null) lines.push(["span", "cloud " + percent(day.cloud)]);
    if (day.reason) lines.push(["div", day.reason]);
    else if (day.valid !== null) lines.push(["div", "observed " + (100 * day.valid).toFixed(0) + "\u202f%"]);
    return lines.map(([tag, text]) => {
      const element = document.createElement(tag);
      element.textContent = text; // never as markup: a reason is foreign text
      return element;
    });
  };

  const show = (day, event) => {
    tip.replaceChildren();
    if (source(day.day)) {
      const image = document.createElement("img");
      image.src = source(day.day);
      tip.append(image);
    }
    tip.append(...tell(day));
    tip.hidden = false;
    const { width, height } = tip.getBoundingClientRect();
    const left = event.clientX + 18 + width > innerWidth ? event.clientX - width - 18 : event.clientX + 18;
    tip.style.left = Math.max(6, left) + "px";
    tip.style.top = Math.max(6, Math.min(event.clientY - height / 2, innerHeight - height - 6)) + "px";
  };
  const hide = () => { tip.hidden = true; };

  let open = 0;
  const enlarge = (index) => {
    open = (index + days.length) % days.length;
    const day = days[open];
    const image = box.querySelector("img");
    image.hidden = !source(day.day);
    if (source(day.day)) image.src = source(day.day);
    image.alt = day.day;
    box.querySelector("p").replaceChildren(...tell(day));
    if (!box.open) { hide(); box.showModal(); }
  };
  box.querySelector("[data-step='-1']").onclick = () => enlarge(open - 1);
  box.querySelector("[data-step='1']").onclick = () => enlarge(open + 1);
  box.onclick = (event) => { if (event.target === box) box.close(); };
  box.onkeydown = (event) => {
    if (event.key === "ArrowLeft") enlarge(open - 1);
    if (event.key === "ArrowRight") enlarge(open + 1);
  };

  for (const svg of document.querySelectorAll("svg.series")) {
    const { left, right, bottom } = svg.dataset;
    const cursor = svg.querySelector(".cursor");
    const first = Date.parse(days[0].day), span = Date.parse(days.at(-1).day) - first + 864e5;
    const find = (event) => {
      const frame = svg.getBoundingClientRect();
      const x = ((event.clientX - frame.left) * svg.viewBox.baseVal.width) / frame.width;
      const share = (x - left) / (right - left);
      if (share < 0 || share >= 1) return undefined;
      const day = new Date(first + Math.floor((share * span) / 864e5) * 864e5).toISOString().slice(0, 10);
      cursor.setAttribute("transform", `translate(${x})`);
      return place.get(day);
    };
    svg.onpointermove = (event) => {
      const index = find(event);
      cursor.setAttribute("visibility", index === undefined ? "hidden" : "visible");
      if (index === undefined) hide(); else show(days[index], event);
    };
    svg.onpointerleave = () => { hide(); cursor.setAttribute("visibility", "hidden"); };
    svg.onclick = (event) => { const index = find(event); if (index !== undefined) enlarge(index); };
  }
  for (const element of document.querySelectorAll("[data-day]")) {
    const index = place.get(element.dataset.day);
    element.onclick = () => enlarge(index);
    if (element.tagName === "rect") {
      element.onpointermove = (event) => show(days[index], event);
      element.onpointerleave = hide;
    }
  }
})();
