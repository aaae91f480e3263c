"""Contrast of every text on a page, as WCAG 2.2 counts it."""

from playwright.sync_api import Page

LEAST = 4.5
"""Of text, level AA; large text would need 3."""
FIND_PALE = """() => {
  const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const parse = (color) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = color;
    canvas.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
    return [r, g, b, a / 255];
  };
  const light = ([r, g, b]) => {
    const [x, y, z] = [r, g, b].map((value) => value / 255)
      .map((value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4));
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const behind = (element) => {
    for (let one = element; one; one = one.parentElement) {
      const color = parse(getComputedStyle(one).backgroundColor);
      if (color[3] > 0.99) return color;
    }
    return matchMedia('(prefers-color-scheme: dark)').matches ? [18, 18, 18] : [255, 255, 255];
  };
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const pale = [];
  while (texts.nextNode()) {
    const element = texts.currentNode.parentElement;
    const text = texts.currentNode.textContent.trim();
    if (!text || !element.checkVisibility() || element.closest('script, style, option')) continue;
    const lights = [parse(getComputedStyle(element).color), behind(element)].map(light);
    const ratio = (Math.max(...lights) + 0.05) / (Math.min(...lights) + 0.05);
    if (ratio < LEAST) pale.push(`${text.slice(0, 40)}: ${ratio.toFixed(2)}`);
  }
  return pale;
}""".replace("LEAST", str(LEAST))


def find_pale(page: Page) -> list[str]:
    """Every text that is too pale to read for its background, with its contrast."""
    pale: list[str] = page.evaluate(FIND_PALE)
    return pale


def find_cut(page: Page) -> list[str]:
    """Every element that reaches beyond the page's width, to where a person must scroll."""
    cut: list[str] = page.evaluate(
        """() => [...document.body.querySelectorAll('*')]
          .filter((one) => one.checkVisibility() && !one.closest('[data-scrolls], thead')
            && one.getBoundingClientRect().right > innerWidth + 1)
          .map((one) => `${one.tagName}.${one.className}`)"""
    )
    return cut
