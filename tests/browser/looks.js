// What is wrong with the page as it is shown, as a list of sentences. Runs in the page, as the body of a function.
const CONTRAST_MIN = 4.5; // WCAG 2.1, AA, for text of any size
const PROBLEMS_MAX = 12;
const problems = [];

const one = (selector) => document.querySelectorAll(selector).length === 1;
if (!one("main")) problems.push("there is not one <main>");
if (!one("h1")) problems.push("there is not one <h1>");
if (!one("script")) problems.push("there is another script than ours");
if (document.documentElement.lang !== "en") problems.push("the language is not told");

// A phone makes the window as wide as what overflows it, but not the element of the document.
const { clientWidth } = document.documentElement;
const wide = [...document.querySelectorAll("body, main *, footer *")].find(
  (element) => !element.parentElement.closest(".table, pre, svg") && element.getBoundingClientRect().right > clientWidth + 1);
if (wide) {
  const { right } = wide.getBoundingClientRect();
  problems.push(`it is ${Math.round(right)} wide in a window of ${clientWidth}: ${wide.outerHTML.slice(0, 120)}`);
}

const rows = new Set([...document.querySelectorAll("header li")].map((item) => item.getBoundingClientRect().top));
if (rows.size > 1) problems.push(`the navigation has ${rows.size} rows`);
const current = document.querySelector("header [aria-current]")?.getBoundingClientRect();
if (current && (current.left < -1 || current.right > clientWidth + 1)) problems.push("the navigation does not show where one is");

for (const field of document.querySelectorAll("input:not([type=hidden]), select, textarea, button, summary")) {
  const label = field.getAttribute("aria-label") ?? [...(field.labels ?? [])].map((label) => label.textContent).join("");
  if (!(label + (field.matches("button, summary") ? field.textContent : "")).trim()) {
    problems.push(`a field without a label: ${field.outerHTML.slice(0, 120)}`);
  }
}
for (const link of document.querySelectorAll("a[href]")) {
  if (!link.textContent.trim()) problems.push(`a link without a text: ${link.outerHTML.slice(0, 120)}`);
}
for (const row of document.querySelectorAll("tbody tr")) {
  const head = row.closest("table").querySelectorAll("thead th").length;
  const cells = [...row.cells].reduce((sum, cell) => sum + cell.colSpan, 0);
  if (cells !== head) problems.push(`a row with ${cells} cells under ${head} headings`);
}

// The part of a colour's light that counts, from 0 to 1.
const luminance = (colour) => {
  const [red, green, blue] = colour.map((value) => {
    const part = value / 255;
    return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
};
const parse = (text) => (text.match(/[\d.]+/g) ?? [0, 0, 0, 0]).map(Number);
const ground = (element) => {
  for (let at = element; at; at = at.parentElement) {
    const [red, green, blue, alpha = 1] = parse(getComputedStyle(at).backgroundColor);
    if (alpha > 0) return [red, green, blue];
  }
  return [255, 255, 255];
};
const seen = new Set();
for (const element of document.body.querySelectorAll("*")) {
  const says = [...element.childNodes].some((node) => node.nodeType === Node.TEXT_NODE && node.data.trim());
  if (!says || !element.checkVisibility()) continue;
  const style = getComputedStyle(element);
  const colour = parse(element instanceof SVGElement ? style.fill : style.color).slice(0, 3);
  const [dark, light] = [luminance(colour), luminance(ground(element))].sort((a, b) => a - b);
  const contrast = (light + 0.05) / (dark + 0.05);
  const sentence = `${element.localName}.${element.getAttribute("class") ?? ""} has a contrast of ${contrast.toFixed(1)}`;
  if (contrast < CONTRAST_MIN && !seen.has(sentence)) problems.push(sentence);
  seen.add(sentence);
}
return problems.slice(0, PROBLEMS_MAX);
