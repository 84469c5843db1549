// What the pages make elements with. Text goes in through textContent and attributes only, never as markup.

/** The element marked data-ref="name" under root. */
export const ref = (root, name) => root.querySelector(`[data-ref="${name}"]`);

/** h('button', {class: 'x', testid: 'y', onclick: fn, disabled: true}, 'text', child) */
export function h(tag, props = {}, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(props)) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith('on')) node.addEventListener(key.slice(2), value);
    else if (key === 'testid') node.dataset.testid = value;
    else if (key === 'ref') node.dataset.ref = value;
    else node.setAttribute(key, value === true ? '' : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

/** Writes only what differs: a selection stays, and a live region is not read again for nothing. */
export function setText(node, text) {
  const value = String(text);
  if (node.textContent !== value) node.textContent = value;
}
