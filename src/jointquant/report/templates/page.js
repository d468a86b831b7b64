"use strict";
const tip = document.getElementById("tip");

async function copy(button) {
  const area = document.getElementById(button.dataset.copy);
  const words = button.textContent;
  try {
    await navigator.clipboard.writeText(area.value);
  } catch {
    area.hidden = false; // a browser that does not let pages write: the text is there to be copied by hand
    area.select();
    button.textContent = "Selected below: press Ctrl+C";
    return;
  }
  button.textContent = "Copied";
  setTimeout(() => { button.textContent = words; }, 1500);
}

function download(button) {
  const link = document.createElement("a");
  const text = document.getElementById("data").textContent;
  link.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  link.download = button.dataset.download;
  link.click();
  URL.revokeObjectURL(link.href);
}

function valuesAt(chart, x) {
  // The values of every line at the point that is nearest to x, in the units of the drawing.
  const lines = [];
  let place = "";
  for (const line of chart.querySelectorAll("polyline[data-values]")) {
    const points = line.getAttribute("points").trim().split(/\s+/).map((pair) => Number(pair.split(",")[0]));
    const values = line.dataset.values.trim().split(/\s+/).map((pair) => pair.split(","));
    if (!line.dataset.values.trim()) continue;
    let nearest = 0;
    points.forEach((at, index) => { if (Math.abs(at - x) < Math.abs(points[nearest] - x)) nearest = index; });
    place = `${chart.dataset.x} ${values[nearest][0]}`;
    lines.push(`${line.dataset.name}: ${values[nearest][1]}`);
  }
  return lines.length ? [place, ...lines].join("\n") : "";
}

function point(event) {
  const chart = event.target.closest("svg[data-x]");
  const box = chart && chart.getBoundingClientRect();
  const words = chart && chart.dataset.x
    ? valuesAt(chart, ((event.clientX - box.left) / box.width) * chart.viewBox.baseVal.width)
    : "";
  tip.hidden = !words;
  if (!words) return;
  tip.textContent = words;
  tip.style.left = "0"; // else its width is what is left to the right of its last place
  tip.style.left = `${Math.max(4, Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 4))}px`;
  tip.style.top = `${Math.max(4, Math.min(event.clientY + 14, innerHeight - tip.offsetHeight - 4))}px`;
}

for (const button of document.querySelectorAll("[data-copy]")) button.addEventListener("click", () => copy(button));
for (const button of document.querySelectorAll("[data-download]")) button.addEventListener("click", () => download(button));
document.addEventListener("pointermove", point);
document.addEventListener("pointerdown", point);
