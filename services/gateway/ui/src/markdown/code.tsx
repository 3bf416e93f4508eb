/** A block of code with its language and a button that copies it. */

import { Component, type ComponentChild } from "preact";
import { CopyButton } from "../shell/controls";
import { t } from "../text";
import { Highlighter, type Token } from "./highlight";

export class CodeBlock extends Component<{ code: string; language: string }> {
  private highlighter = new Highlighter("");
  private language = "";

  render({ code, language }: { code: string; language: string }): ComponentChild {
    if (language !== this.language) {
      // The name itself may have come in pieces.
      this.language = language;
      this.highlighter = new Highlighter(language);
    }
    return (
      <figure class="code">
        <figcaption>
          <span>{language || t("code")}</span>
          <CopyButton text={() => code} />
        </figcaption>
        <pre tabIndex={0}><code>
          {this.highlighter.pieces(code).map((tokens, index) => <Piece key={index} tokens={tokens} />)}
        </code></pre>
      </figure>
    );
  }
}

class Piece extends Component<{ tokens: Token[] }> {
  override shouldComponentUpdate({ tokens }: { tokens: Token[] }): boolean {
    return tokens !== this.props.tokens;
  }

  render({ tokens }: { tokens: Token[] }): ComponentChild {
    return tokens.map(([kind, text]) => (kind === "plain" ? text : <span class={`hl-${kind}`}>{text}</span>));
  }
}
