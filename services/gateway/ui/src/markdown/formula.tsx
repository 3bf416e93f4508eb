/** Formulas: TeX as MathML, which browsers set by themselves. */

import { Component, type ComponentChild } from "preact";
import { texToMathml } from "./tex";

export class Formula extends Component<{ tex: string; display: boolean }> {
  override shouldComponentUpdate(next: { tex: string; display: boolean }): boolean {
    return next.tex !== this.props.tex || next.display !== this.props.display;
  }

  render({ tex, display }: { tex: string; display: boolean }): ComponentChild {
    const content = texToMathml(tex);
    if (!content) return display ? <pre class="tex">{tex}</pre> : <code class="tex">{tex}</code>;
    const math = (
      <math display={display ? "block" : "inline"} aria-label={tex}>
        <mrow>{content}</mrow>
      </math>
    );
    return display ? <div class="formula" tabIndex={0} role="group" aria-label={tex}>{math}</div> : math;
  }
}
