// Elements in one call: h('button.primary', {onclick}, 'Save').

export function h(tag, attributes = {}, ...children) {
  const [name, ...classes] = tag.split('.');
  const element = document.createElement(name);
  element.className = classes.join(' ');
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith('on')) element.addEventListener(key.slice(2), value);
    else if (key in element && typeof value !== 'string') element[key] = value;
    else if (value !== false && value !== null) element.setAttribute(key, value);
  }
  element.append(...children.flat().filter(child => child !== null && child !== undefined && child !== false));
  return element;
}

/** A drawing of 16 x 16 units, of one SVG path. */
export const icon = path => {
  const holder = h('span.medsa-icon', { 'aria-hidden': 'true' });
  holder.innerHTML = `<svg viewBox="0 0 16 16"><path d="${path}"/></svg>`;
  return holder;
};
