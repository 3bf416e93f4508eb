/** A component that is drawn again only when one of its properties is another one. */

import { Component, type ComponentChild } from "preact";

export function memo<P extends object>(show: (props: P) => ComponentChild) {
  return class extends Component<P> {
    override shouldComponentUpdate(next: P): boolean {
      return (Object.keys(next) as (keyof P)[]).some((name) => next[name] !== this.props[name]);
    }

    render(props: P): ComponentChild {
      return show(props);
    }
  };
}
