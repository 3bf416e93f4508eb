/** What is shown in the place of something that cannot be drawn, so that the rest of the page lives on. */

import { Component, type ComponentChild, type ComponentChildren } from "preact";

export class Guard extends Component<{ text: string; children: ComponentChildren }, { broken: boolean }> {
  override state = { broken: false };

  override componentDidCatch(error: unknown): void {
    console.warn(error);
    this.setState({ broken: true });
  }

  render({ text, children }: { text: string; children: ComponentChildren }, { broken }: { broken: boolean }): ComponentChild {
    return broken ? <pre class="raw">{text}</pre> : children;
  }
}
